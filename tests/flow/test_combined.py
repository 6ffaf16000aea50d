"""Combined maps are sums, on one scale, of what the same passes give; others are refused."""

from __future__ import annotations

import numpy as np
import pytest

import vlmflow
from tests.support.families import picture
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.combined import Combined
from vlmflow.flow.signals.signal import Passes
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

    from vlmflow.flow.signals.signal import Part

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
