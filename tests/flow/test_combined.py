"""Combined maps are sums, on one scale, of what the same passes give; others are refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import vlmflow
from tests.support.families import FAMILIES, picture
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.combined import Combined
from vlmflow.flow.signals.saliency import Saliency
from vlmflow.flow.signals.signal import Part, Passes
from vlmflow.result.information_flow import InformationFlow

QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.LVLM(*tiny_llava(3, layers=3), name="tiny")


def explained(vlm, *signals):
    return vlm.explain(picture(1, (40, 40)), QUESTION, "1 2", signals=list(signals))


def on_scale(values, scale):
    """By hand: a share of the mean, or how many values are lower, ties by half."""
    positive = np.maximum(values, 0)
    if scale == "mean":
        return positive / positive.mean()
    lower = np.array([(positive < own).sum() + (positive == own).sum() / 2 for own in positive])
    return (lower - lower.min()) / len(positive)


@pytest.mark.parametrize("scale", ["mean", "rank"])
def test_it_is_the_sum_of_its_parts_for_every_target(vlm, scale, tmp_path):
    parts = "attention:0-1 + saliency:2+sensitivity(layers=2)+tam"
    plain = explained(vlm, "attention", "saliency", "sensitivity(layers=2)", "tam")
    text = f"combined(parts={parts!r}, scale={scale!r})"
    flow = explained(vlm, text, "flow_map")
    assert flow.signals == ("combined", "flow_map")
    for target in range(3):
        maps = [
            *(plain.map("attention", layer, target) for layer in (0, 1)),
            plain.map("saliency", 2, target),
            plain.map("sensitivity", None, target),
            plain.map("tam", None, target),
        ]
        wanted = np.mean([on_scale(own, scale) for own in maps], axis=0)
        np.testing.assert_allclose(flow.map("combined", None, target), wanted, rtol=1e-4, atol=1e-6)
    flow.save(tmp_path / "flow")
    again = InformationFlow.load(tmp_path / "flow")
    about = again.map_info("combined")
    assert about.label.startswith("attention:0-1 + ")
    assert (about.label.endswith("(ranks)")) == (scale == "rank")
    assert about.whole


def test_a_share_of_the_depth_is_a_layer(vlm):
    """Of three layers, a third of the way is layer 1, and two thirds layer 2."""
    for share, layer in (("0/3", 0), ("1/3", 1), ("1/2", 1), ("2/3", 2)):
        flow = explained(vlm, f"combined(parts=saliency:{share})", "saliency")
        np.testing.assert_allclose(
            flow.map("combined"), on_scale(flow.map("saliency", layer), "mean"), rtol=1e-4
        )


@pytest.mark.parametrize(
    ("layers", "with_map", "expected"),
    [
        (12, range(12), 4),
        (30, range(30), 10),
        (2, range(2), 0),
        (12, (0, 3, 7, 11), 3),  # one layer before, three after
        (12, (2, 6), 2),  # as far: the earlier one
        (12, (7,), 7),
        (12, (), 4),  # none has one: the map there is empty, as anywhere
    ],
)
def test_a_share_of_the_depth_is_the_nearest_layer_with_a_map(layers, with_map, expected):
    part = Part(Saliency(), Fraction(1, 3))
    assert part.place([layer in with_map for layer in range(layers)]) == expected


def test_where_layers_have_no_attention_the_nearest_that_has_is_taken():
    """Of the hybrid model's layers, the one with attention."""
    (family, *_) = [own for own in FAMILIES if own.model_type == "lfm2_vl"]
    hybrid = family.lvlm()
    flow = explained(hybrid, "combined(parts=text_attention:1/2)", "saliency", "text_attention")
    there = [layer for layer in range(hybrid.num_layers) if flow.flag("saliency", layer) == "ok"]
    assert 0 < len(there) < hybrid.num_layers
    wanted = hybrid.num_layers // 2
    assert wanted not in there
    layer = min(there, key=lambda own: abs(own - wanted))
    np.testing.assert_allclose(
        flow.map("combined"), on_scale(flow.map("text_attention", layer), "mean"), rtol=1e-4
    )


def test_a_part_that_is_not_defined_adds_nothing(vlm):
    """The last layer shows LLaVA-CAM nothing of the image."""
    flow = explained(vlm, "combined(parts=llava_cam:2+attention:1)", "attention")
    own, other = flow.map("combined"), flow.map("attention", 1)
    np.testing.assert_allclose(own, on_scale(other, "mean") / 2, rtol=1e-4)
    nothing = explained(vlm, Combined("llava_cam:2"))
    assert nothing.flag("combined") == "empty"


def test_what_it_takes_and_what_it_is_known_by():
    assert Combined("attention:1+tam").passes(3) == Passes(2, 0)
    assert not Combined("attention:1+rollout:1").needs_gradients
    shared = Combined("attention:1+saliency:2+sensitivity")
    assert shared.needs_gradients
    assert shared.passes() == Passes(1, 1)
    assert shared.passes(3).backward == 3
    assert Combined("region_removal+saliency:1").searched_with == "removal of image tokens"
    assert Combined("saliency:1").fingerprint() != Combined("saliency:2").fingerprint()
    assert Combined("saliency:1", "rank").title == "combined(parts='saliency:1', scale='rank')"


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("combined(parts=saliency:4+gradcam)", "signal 'gradcam' is unknown"),
        ("combined(parts=saliency:1, scale=max)", "scale='max' is none of 'mean', 'rank'"),
        ("combined(parts=' ')", "names no signal"),
        ("combined(parts=saliency:1+combined)", "made of other maps itself; name these"),
        ("combined(parts=saliency:2-1)", "layers 2-1 are none; swap them"),
        ("combined(parts=saliency:1/1)", "1/1 is no share of the depth below 1; for example 1/3"),
        ("combined(parts=saliency:1/0)", "1/0 is no share of the depth"),
        ("combined(parts=flow_map:1/3)", "one map for all layers; leave the layer out"),
        ("combined(parts=saliency)", "one map per layer; name one, saliency:0"),
        ("combined(parts=flow_map:1)", "one map for all layers; leave the layer out"),
        ("combined(parts=saliency:3)", r"layer 3, but the model has 3 decoder layers \(0..2\)"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_sentence(vlm, text, pattern):
    with pytest.raises(InputError, match=pattern) as error:
        explained(vlm, text)
    assert "\n" not in str(error.value)


def test_a_signal_of_a_notebook_may_be_made_of_others(vlm):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Least(vlmflow.Signal):
        """What both of two maps show."""

        reads, summed, whole = "maps", True, True

        @property
        def made_of(self):
            given = ExplainOptions(["attention", "saliency"]).named
            return tuple(Part(given[name], 1) for name in ("attention", "saliency"))

        def of_maps(self, maps):
            return maps.amin(0)

    flow = explained(vlm, Least(), "attention", "saliency")
    both = [flow.map(name, 1) for name in ("attention", "saliency")]
    np.testing.assert_array_equal(flow.map("least"), np.min(both, axis=0))
    prompt = vlm.prepare(picture(1, (40, 40)), QUESTION, "1 2")
    with pytest.raises(InputError, match="made of other signals' maps; measure it with"):
        measure(
            vlm.model, vlm.decoder_layers, prompt.inputs, [prompt.layout], ExplainOptions([Least()])
        )
