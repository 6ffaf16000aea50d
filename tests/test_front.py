"""What a user writes in a notebook, cell by cell, on the bundled model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np
import pytest

import vlmflow
from tests.support.number_format import QUICK


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.load("scenes-llava", dtype=QUICK)


@pytest.fixture(scope="module")
def sample():
    return vlmflow.sample("scenes-reading", index=3)


@pytest.fixture(scope="module")
def flow(vlm, sample):
    return vlm.explain(*sample)


@dataclass(frozen=True)
class Contrast(vlmflow.Ranking):
    """Keeps tokens that differ from their picture's mean state."""

    power: float = 1.0
    name = "front_contrast"  # the documentation's page, run in the same process, has a Contrast
    reads = "hidden"

    def scores(self, seen):
        states = seen.hidden[seen.image].float()
        return (states - states.mean(0)).norm(dim=-1) ** self.power


@dataclass(frozen=True)
class MaxAttention(vlmflow.Signal):
    """The strongest look of any text row at each image token."""

    name = "front_max_attention"
    reads, rows = "attention", "text"
    label, colour, source = "max attention", "#0072b2", "this notebook"

    def of_layer(self, rows):
        return rows.attention.amax(0)


def test_why_it_said_that(flow, tmp_path):
    assert "<img" in flow._repr_html_()
    assert len(repr(flow)) < 300
    digit = flow.answer_tokens[0].strip()
    picture = flow.pixel_map("saliency", layer=4, target=digit if digit != flow.answer else 1)
    assert picture.shape == flow.layout.image_sizes[0][::-1]
    assert vlmflow.report(flow, tmp_path / "report.html").stat().st_size > 100_000
    names = {path.name for path in vlmflow.figures(flow, tmp_path / "figures")}
    assert {"segments.png", "maps_flow_map.pdf"} <= names


def test_which_maps_can_be_trusted(vlm):
    study = vlmflow.faithfulness(
        vlm, task="scenes-reading", signals=["saliency", "flow_map"], samples=2, layers=[4],
        replacements=["tokens"], steps=2, sanity=0, timed=0,
    )  # fmt: skip
    assert study.maps[:2] == ("saliency", "flow_map")
    assert "random (control)" in study._repr_html_()


def test_from_where_on_image_tokens_are_redundant(vlm, sample):
    curve = vlm.removal_curve(*sample)
    assert curve.layers == tuple(range(vlm.num_layers))
    assert curve.same_answer.shape == (vlm.num_layers,)


def test_removing_them(vlm, sample):
    with vlmflow.Truncation(layer=10, keep=0.25, rank_by="diversity")(vlm.model):
        vlm.model.generate(**vlm.prepare(*sample).inputs, max_new_tokens=4, do_sample=False)


def test_my_own_ranking(vlm, sample, tmp_path):
    own = vlmflow.Truncation(layer=2, keep=0.5, rank_by=Contrast(power=2))
    assert own != vlmflow.Truncation(layer=2, keep=0.5, rank_by=Contrast())
    answer = vlm.generate(*sample, truncation=own)
    assert answer == vlm.generate(
        *sample, truncation=vlmflow.Truncation(2, 0.5, "front_contrast(power=2)")
    )
    result = vlmflow.study(
        vlm, "scenes-reading", [own, "fastv"], out=tmp_path, samples=4, calibration=4, timed=0
    )
    assert "front_contrast(power=2)" in " ".join(arm.name for arm in result.arms)


def test_my_own_signal(vlm, sample, tmp_path):
    flow = vlm.explain(*sample, signals=["saliency", MaxAttention()])
    assert flow.signals == ("saliency", "front_max_attention")
    assert flow.about["front_max_attention"].label == "max attention"
    assert flow.maps["front_max_attention"].max() <= 1
    flow.save(tmp_path)
    again = vlmflow.InformationFlow.load(tmp_path)
    assert again.about == flow.about
    np.testing.assert_array_equal(
        again.maps["front_max_attention"], flow.maps["front_max_attention"]
    )


@pytest.mark.parametrize(
    "call",
    [
        *(vlmflow.LVLM.explain, vlmflow.LVLM.generate, vlmflow.LVLM.removal_curve),
        *(vlmflow.LVLM.removal_curves, vlmflow.LVLM.prepare, vlmflow.load, vlmflow.study),
        *(
            vlmflow.cliff_study,
            vlmflow.faithfulness,
            vlmflow.report,
            vlmflow.figures,
            vlmflow.sample,
        ),
    ],
)
def test_the_front_spells_out_what_can_be_asked_for(call):
    signature = inspect.signature(call)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert all(p.annotation is not p.empty for n, p in signature.parameters.items() if n != "self")
    documented = inspect.getdoc(call)
    assert documented
    for name in signature.parameters:
        assert name == "self" or name in documented, name
