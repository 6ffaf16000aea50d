"""A family from outside of the package: registered in a notebook, or found by an entry point."""

from __future__ import annotations

import sys
from importlib import metadata
from types import ModuleType

import numpy as np
import pytest
import torch

import vlmflow
from tests.support.families import FAMILIES, SIZES, picture
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.families import Execution, PromptPictures, UnknownFamily, family_of
from vlmflow.lvlm.families import registry as families
from vlmflow.lvlm.families.base import token_runs
from vlmflow.lvlm.grids import ImageGrid

QUESTION = "What colour is the circle?"
TYPE = "notebook_vlm"
SIDE = 4


class Notebook(vlmflow.Family):
    """Four by four tokens per picture, which is squeezed into a square."""

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        grids = []
        runs = token_runs(prompt.positions, [SIDE**2] * len(prompt.image_sizes))
        for image, run in enumerate(runs):
            width, height = prompt.image_sizes[image]
            x, y = np.linspace(0, width, SIDE + 1), np.linspace(0, height, SIDE + 1)
            boxes = [
                [(x[col], y[row], x[col + 1], y[row + 1]) for col in range(SIDE)]
                for row in range(SIDE)
            ]
            grids.append(ImageGrid(image, run.reshape(SIDE, SIDE), np.array(boxes)))
        return tuple(grids)

    def places(self, first, tokens, inputs, config):
        return np.array(
            [
                (image, row, col)
                for image in range(tokens // SIDE**2)
                for row in range(SIDE)
                for col in range(SIDE)
            ],
            dtype=np.float64,
        )


def model_of(model_type: str = TYPE) -> vlmflow.LVLM:
    """The same weights whatever the type."""
    model, processor = tiny_llava(3, tower="siglip")
    model.config.model_type = model_type
    return vlmflow.LVLM(model, processor)


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """What a test registers or installs is gone after it."""
    monkeypatch.setattr(families, "_registered", {})
    families._installed.cache_clear()
    yield
    families._installed.cache_clear()


def test_a_registered_family_works_in_everything():
    """Against LLaVA's own family, which says the same of this model in another way."""
    vlmflow.register_family(TYPE, Notebook)
    own, llava = model_of(), model_of("llava")
    pictures = [picture(1, SIZES[0]), picture(2, SIZES[1])]
    flows = [vlm.explain(pictures, QUESTION, "red") for vlm in (own, llava)]
    for image, (width, height) in enumerate(SIZES):
        result, expected = (flow.pixel_map("saliency", layer=2, image=image) for flow in flows)
        assert result.shape == (height, width)
        assert np.ptp(result) > 0
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    policy = vlmflow.Truncation(1, 4, rank_by="uniform")
    logits = []
    for vlm in (own, llava, model_of("of no family")):
        with policy(vlm.model), torch.no_grad():
            logits.append(vlm.model(**vlm.prepare(pictures[0], QUESTION).inputs).logits[0, -1])
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    assert not torch.allclose(logits[0], logits[2])  # even steps of the sequence are other tokens
    curves = [
        vlm.removal_curve(pictures[0], QUESTION, "red", keep=4, rank_by="uniform")
        for vlm in (own, llava)
    ]
    np.testing.assert_array_equal(curves[0].logprob, curves[1].logprob)
    assert own.config_summary()["family"] == "Notebook"


def test_a_registered_family_wins_until_it_is_unregistered():
    built_in = family_of("llava")
    mine = Notebook()
    vlmflow.register_family("llava", mine)
    wrapped = model_of("llava")
    assert wrapped.family is mine
    families.unregister_family("llava")
    assert family_of("llava") is built_in
    assert wrapped.family is mine
    assert isinstance(family_of(TYPE), UnknownFamily)
    with pytest.raises(InputError, match=r"no family is registered .* registered: none"):
        families.unregister_family("llava")


def test_how_a_model_runs_is_the_familys_word():
    """BLIP-2's `generate` runs the language model alone, where a truncation has to follow it."""

    class PastForward(Notebook):
        def execution(self, config):
            return Execution(generates_past_forward=True)

    (tiny,) = [family for family in FAMILIES if family.name == "blip-2"]
    built_in = tiny.lvlm()
    prompt = built_in.prepare(picture(1, SIZES[0]), QUESTION)
    policy = vlmflow.Truncation(1, 0)
    expected = built_in.generate_ids(prompt, max_new_tokens=3, truncation=policy)
    for family in (Notebook, PastForward):
        vlmflow.register_family(TYPE, family)
        model, processor = tiny.build("sdpa")
        model.config.model_type = TYPE
        vlm = vlmflow.LVLM(model, processor)
        if family is Notebook:
            with pytest.raises(ModelError, match="runs its decoder past its own forward"):
                vlm.generate_ids(prompt, max_new_tokens=3, truncation=policy)
        else:
            ids = vlm.generate_ids(prompt, max_new_tokens=3, truncation=policy)
            assert ids == expected


class Half(vlmflow.Family):
    """Lacks what every family must say."""


class Needy(Notebook):
    def __init__(self, side):
        self.side = side


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (object(), "must be a vlmflow.Family or a subclass of it, not <object"),
        (dict, "must be a vlmflow.Family or a subclass of it, not <class 'dict'>"),
        (Half, "the family Half .* does not define grids"),
        (Needy, "the family Needy .* cannot be made without arguments .*give an object"),
    ],
)
def test_what_is_not_a_family_is_refused(family, message):
    with pytest.raises(InputError, match=message):
        vlmflow.register_family(TYPE, family)
    with pytest.raises(InputError, match="model_type='' is not the name of a model type"):
        vlmflow.register_family("", Notebook)
    assert isinstance(family_of(TYPE), UnknownFamily)


def install(monkeypatch, **values: str) -> None:
    """Let installed packages name families, by model type."""
    module = ModuleType("their_package")
    module.Notebook, module.ready, module.number = Notebook, Notebook(), 7
    monkeypatch.setitem(sys.modules, "their_package", module)

    def entry_points(*, group, name):
        assert group == "vlmflow.families"
        points = [metadata.EntryPoint(name, value, group) for value in values.get(name, "").split()]
        return metadata.EntryPoints(points)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


def test_an_installed_package_adds_families(monkeypatch):
    install(monkeypatch, notebook_vlm="their_package:Notebook", llava="their_package:ready")
    vlm = model_of()
    assert type(vlm.family) is Notebook
    flow = vlm.explain(picture(1, SIZES[0]), QUESTION, "red")
    assert flow.pixel_map("saliency", layer=2).shape == SIZES[0][::-1]
    assert family_of("llava") is sys.modules["their_package"].ready
    vlmflow.register_family("llava", mine := Notebook())
    assert family_of("llava") is mine


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ("their_package:number", InputError, "must be a vlmflow.Family .* not 7"),
        ("their_package:gone", ModelError, r"their_package:gone .* cannot be loaded \(Attribute"),
        ("no_such_package:Mine", ModelError, r"cannot be loaded \(ModuleNotFound.* uninstall"),
        ("their_package:Notebook their_package:ready", ModelError, "several .* choose one with"),
    ],
)
def test_an_installed_family_that_cannot_be_used_is_one_sentence(
    monkeypatch, values, error, message
):
    install(monkeypatch, notebook_vlm=values)
    with pytest.raises(error, match=message):
        model_of()
