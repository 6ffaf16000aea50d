"""Query tokens (BLIP-2, InstructBLIP): where they look, and a generate past the model's forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from tests.support.families import FAMILIES, PATCH, picture
from tests.support.tiny_square import QUERIES
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.reports.figures.all_figures import strip_figure
from vlmflow.result.information_flow import InformationFlow
from vlmflow.truncation import Truncation
from vlmflow.truncation.shared_answers import shared_answers

QUESTION = "What colour is the circle?"
each_family = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.queries], ids=lambda family: family.name
)


def q_former(vlm):
    return next(m for name, m in vlm.model.named_modules() if name.endswith("qformer"))


def explained(vlm, size=(30, 20), **options):
    return vlm.explain(picture(1, size), QUESTION, "a red circle", **options)


@each_family
def test_looks_are_the_mean_of_the_own_cross_attention(family):
    """The model's own record of its attention, under eager attention, is the reference."""
    vlm, eager = family.lvlm(), family.lvlm("eager")
    (grid,) = explained(vlm).layout.grids
    assert isinstance(grid, SharedGrid)
    recorded = []
    for layer in q_former(eager).modules():
        if getattr(layer, "has_cross_attention", False):
            layer.crossattention.attention.register_forward_hook(
                lambda _module, _args, output: recorded.append(output[1])
            )
    prompt = eager.prepare(picture(1, (30, 20)), QUESTION)
    with torch.no_grad():
        eager.model(**prompt.inputs)
    assert len(recorded) == 1  # every second of two layers
    expected = torch.stack(recorded).mean((0, 2))[0, :, 1:]
    expected = (expected / expected.sum(1, keepdim=True)).numpy().reshape(QUERIES, *grid.shape)
    np.testing.assert_allclose(grid.looks, expected, rtol=1e-5)
    assert "Q-Former's cross-attention" in grid.how


@each_family
def test_patches_are_where_pixels_count(family):
    """Pixels under one box change the features of its patch and of no other."""
    vlm = family.lvlm()
    vlm.processor.image_processor.resample = Image.Resampling.NEAREST
    embeddings = next(
        m for name, m in vlm.model.named_modules() if name.endswith("vision_model.embeddings")
    )
    (grid,) = explained(vlm, (57, 41)).layout.grids
    assert grid.shape == (4, 4)
    assert grid.boxes[-1, -1, 2:].tolist() == [57, 41]
    seen = []
    embeddings.register_forward_hook(lambda _module, _args, output: seen.append(output[0, 1:]))
    black = np.zeros((41, 57, 3), np.uint8)
    with torch.no_grad():
        vlm.model(**vlm.prepare(Image.fromarray(black), QUESTION).inputs)
        for row, column in np.ndindex(grid.shape):
            x0, y0, x1, y1 = grid.boxes[row, column].round().astype(int)
            painted = black.copy()
            painted[y0:y1, x0:x1] = 255
            vlm.model(**vlm.prepare(Image.fromarray(painted), QUESTION).inputs)
            moved = ((seen[-1] - seen[0]).abs().amax(1) > 1e-5).view(4, 4).nonzero().tolist()
            assert moved == [[row, column]]
    assert PATCH * 4 == 16  # the tower's side, so that boxes are 57/16 wide: rounding is exact here


@each_family
def test_a_map_keeps_its_sum_and_its_mass(family, tmp_path):
    flow = explained(family.lvlm(), (64, 32))
    for layer in range(flow.layers):
        values = flow.map("saliency", layer)
        assert flow.grid("saliency", layer).sum() == pytest.approx(values.sum(), rel=1e-5)
    whole = flow.convergence_frame((0, 0, 64, 32))
    left, right = (flow.convergence_frame((x, 0, x + 32, 32)) for x in (0, 32))
    ok = whole["flag"] == "ok"
    np.testing.assert_allclose(whole["inside_mass"][ok], 1, rtol=1e-6)
    np.testing.assert_allclose(left["inside_mass"][ok] + right["inside_mass"][ok], 1, rtol=1e-6)
    (grid,) = flow.layout.grids
    values = flow.map("attention", 0).astype(np.float64)
    expected = np.einsum("q,qyx->yx", values, grid.looks)[:, :2].sum() / values.sum()
    assert left["inside_mass"][0] == pytest.approx(expected)
    assert np.isnan(flow.token_boxes()).all()
    painted = flow.pixel_map("attention", 0)
    np.testing.assert_allclose(painted[::8, ::16], flow.grid("attention", 0), rtol=1e-5)
    again = InformationFlow.load(flow.save(tmp_path))
    np.testing.assert_array_equal(again.pixel_map("flow_map"), flow.pixel_map("flow_map"))


@each_family
def test_the_model_is_left_as_found(family):
    vlm = family.lvlm()
    with pytest.raises(InputError, match="takes one picture, but the question shows 2"):
        vlm.prepare([picture(1, (30, 20)), picture(2, (30, 20))], QUESTION)
    prompt = vlm.prepare(picture(1, (30, 20)), QUESTION)
    assert "explain records where" in prompt.layout.grids_missing
    explained(vlm)
    vlm.generate_ids(prompt, max_new_tokens=2, truncation=Truncation(1, 0))
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, name) for module in vlm.model.modules() for name in hooks)


def test_shared_grids_say_what_is_wrong_with_them():
    boxes = np.zeros((1, 2, 4))
    boxes[0, :, 2:] = 1
    boxes[0, 1, 0::2] += 1
    looks = np.full((3, 1, 2), 0.5)
    SharedGrid(0, np.arange(3), boxes, looks=looks, how="")
    with pytest.raises(InputError, match="needs positions"):
        SharedGrid(0, np.arange(2), boxes, looks=looks, how="")
    with pytest.raises(InputError, match="sum to 1 over the patches"):
        SharedGrid(0, np.arange(3), boxes, looks=looks * 0.5, how="")


@each_family
def test_oracles_rank_forward_passes_but_not_inside_generate(family):
    vlm = family.lvlm()
    prompt = vlm.prepare(picture(1, (30, 20)), QUESTION)
    policy = Truncation(2, 2, "saliency")
    with torch.no_grad(), policy(vlm.model):
        vlm.model(**prompt.inputs)
    with pytest.raises(InputError, match="runs the whole model first"):
        vlm.generate_ids(prompt, truncation=policy)


@each_family
def test_beams_are_those_of_the_untouched_model_where_all_is_kept(family):
    vlm = family.lvlm()
    prompt = vlm.prepare(picture(1, (30, 20)), QUESTION)
    options = {
        "num_beams": 3, "do_sample": False, "max_new_tokens": 6,
        "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    with torch.no_grad():
        expected = vlm.model.generate(**prompt.inputs, **options)
        with Truncation(2, 1.0, "last_attention")(vlm.model):
            output = vlm.model.generate(**prompt.inputs, **options)
        with Truncation(1, 0)(vlm.model):
            other = vlm.model.generate(**prompt.inputs, **options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(output.sequences_scores, expected.sequences_scores)
    assert abs(other.sequences_scores - expected.sequences_scores).item() > 1e-3


@each_family
def test_embeddings_from_elsewhere_and_unknown_types_are_refused(family, monkeypatch):
    vlm = family.lvlm()
    prompt = vlm.prepare(picture(1, (30, 20)), QUESTION)
    embeds = torch.zeros(1, 3, vlm.model.get_input_embeddings().weight.shape[1])
    with (
        pytest.raises(InputError, match="pass input_ids and pixel_values"),
        Truncation(1, 0)(vlm.model),
    ):
        vlm.model.language_model(inputs_embeds=embeds)
    monkeypatch.setattr("vlmflow.lvlm.families.registry.FAMILIES", ())
    unknown = family.lvlm()
    with pytest.raises(ModelError, match="runs its decoder past its own forward"):
        unknown.generate_ids(prompt, truncation=Truncation(1, 0))
    own = unknown.generate_ids(prompt, max_new_tokens=3)
    assert shared_answers(unknown, [prompt], [], max_new_tokens=3) == [[own]]
    with pytest.raises(ModelError, match="past its own forward"):
        shared_answers(unknown, [prompt], [Truncation(1, 0)], max_new_tokens=3)


@each_family
def test_the_strip_says_whose_places_it_shows(family):
    figure = strip_figure(explained(family.lvlm(), (64, 32)), "saliency")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert "patches: where query tokens look" in texts
