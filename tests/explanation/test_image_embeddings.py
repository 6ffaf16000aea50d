"""Gradient x input and integrated gradients, against one eager pass per point and target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import vlmflow
from tests.support.families import FAMILIES, picture
from tests.support.slow_signals import integrated, targets_and_gradients
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.gradient_input import GradientInput
from vlmflow.flow.signals.integrated_gradients import IntegratedGradients
from vlmflow.flow.signals.signal import Noise, Path
from vlmflow.lvlm.batch import collate, pad_id

QUESTION, ANSWER = "What colour is it?", "a red"
# float32, both sides: 1e-4 of the map's largest value is some hundred roundings (6e-8 each).
FLOAT32 = 1e-4
CHOSEN = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl_moe", "gemma3", "lfm2_vl", "blip-2")
"""Families: tiles, positions on three axes, late image features, sliding windows, layers without
attention, queries."""


def assert_close(values, expected, what=""):
    assert values.shape == expected.shape
    worst = (np.abs(values - expected) / np.abs(expected).max(-1, keepdims=True)).max()
    assert worst <= FLOAT32, f"{what}: off by {worst:.1e}"


@pytest.mark.parametrize("name", CHOSEN)
def test_maps_agree_with_eager_passes(name):
    """For the whole answer and each token; tiles, several pictures and all."""
    (family, *_) = [family for family in FAMILIES if family.model_type == name]
    vlm, eager = family.lvlm(), family.lvlm("eager")
    pictures = [picture(1, (30, 20)), picture(2, (17, 41))][: 2 - family.queries]
    signals = ["gradient_input", "integrated_gradients(steps=3)"]
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=signals)
    prompt = eager.prepare(pictures, QUESTION, ANSWER)
    _, gradients, difference = targets_and_gradients(eager, prompt, 1.0, "zero")
    expected = (difference * gradients).sum(-1).numpy()
    assert_close(flow.maps["gradient_input"][0], expected, f"{name}, gradient x input")
    expected = integrated(eager, prompt, 3, "mean")
    assert_close(flow.maps["integrated_gradients"][0], expected, f"{name}, integrated")
    assert flow.maps["gradient_input"].min() < 0 < flow.maps["gradient_input"].max()


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.LVLM(*tiny_llava(kv_heads=2))


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_values_add_up_to_what_the_picture_does(vlm, baseline):
    """Completeness, with the target at the baseline from a pass of its own.

    From zero, the first norm sees all of the change in the first thousandth of the path: there the
    sum is a long way off with the same number of points, as the docstring says.
    """
    shown = picture(3, (60, 40))
    signal = IntegratedGradients(steps=32, baseline=baseline)
    flow = vlm.explain(shown, QUESTION, ANSWER, signals=[signal])
    prompt = vlm.prepare(shown, QUESTION, ANSWER)
    there, *_ = targets_and_gradients(vlm, prompt, 1.0, baseline)
    blank, *_ = targets_and_gradients(vlm, prompt, 0.0, baseline)
    change = there - blank
    assert np.abs(change).min() > 0.01
    sums = flow.maps["integrated_gradients"][0].sum(-1)
    if baseline == "mean":
        np.testing.assert_allclose(sums, change, atol=0.01 * np.abs(change).max())
    else:
        assert np.abs(sums - change).max() > 0.1 * np.abs(change).max()
        points = integrated(vlm, prompt, 32, "zero")
        assert_close(flow.maps["integrated_gradients"][0], points)


@pytest.mark.parametrize("options", [{"per_token": False}, {"low_memory": True}], ids=str)
def test_every_way_of_measuring_gives_the_same(vlm, options):
    signals = ["gradient_input", "integrated_gradients(steps=5)"]
    shown = [picture(3, (60, 40)), picture(4, (40, 60))]
    flow = vlm.explain(shown, QUESTION, ANSWER, signals=signals)
    again = vlm.explain(shown, QUESTION, ANSWER, signals=signals, **options)
    for name in again.signals:
        ways = again.maps[name].shape[1]
        assert ways == 1 if options.get("per_token") is False else 1 + len(flow.answer_tokens)
        assert_close(again.maps[name][0], flow.maps[name][0, :ways], name)


def test_a_padded_batch_is_its_rows(vlm):
    prompts = [
        vlm.prepare(picture(1, (40, 40)), "What is it?", "a red circle"),
        vlm.prepare(picture(2, (40, 40)), "Is there a blue square in the picture?", "no"),
    ]
    inputs, layouts = collate(prompts, pad_id(vlm.processor.tokenizer))
    batch = measure(
        vlm.model, vlm.decoder_layers, inputs, layouts, ExplainOptions(["gradient_input"])
    )
    for prompt, measured in zip(prompts, batch, strict=True):
        _, gradients, difference = targets_and_gradients(vlm, prompt, 1.0, "zero")
        assert_close(measured.maps["gradient_input"][0], (difference * gradients).sum(-1).numpy())


def test_one_map_of_the_whole_model(vlm, tmp_path):
    """It has no layer, is called so where it is shown, and survives saving."""
    flow = vlm.explain(picture(3, (60, 40)), QUESTION, ANSWER, signals=["gradient_input"])
    about = flow.map_info("gradient_input")
    assert about.whole
    assert (about.where, about.span) == ("one map of the whole model", "whole model")
    assert about.searched_with == ""
    assert "1605.01713" in about.source
    with pytest.raises(InputError, match="is one map of the whole model: leave layer out"):
        flow.map("gradient_input", 0)
    again = vlmflow.InformationFlow.load(flow.save(tmp_path / "flow"))
    assert again.about == flow.about


def test_passes_and_progress(vlm):
    assert GradientInput().passes() == GradientInput().passes(tokens=1)
    passes = IntegratedGradients(steps=6).passes(tokens=2)
    assert (passes.forward, passes.backward) == (6, 12)
    seen = []
    flow = vlm.explain(
        picture(3, (60, 40)), QUESTION, ANSWER, signals=["integrated_gradients(steps=6)"],
        progress=lambda *pair: seen.append(pair),
    )  # fmt: skip
    # Two batches of at most four points beside the pass that all share, one without the picture.
    count = 3 * (1 + len(flow.answer_tokens)) + 1
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_bad_paths_are_refused():
    for text, message in (
        ("integrated_gradients(steps=0)", "steps=0; give an integer from 1"),
        ("integrated_gradients(baseline=black)", "baseline='black' is none of 'mean', 'zero'"),
    ):
        with pytest.raises(InputError, match=message):
            ExplainOptions([text])

    @dataclass(frozen=True)
    class Both(IntegratedGradients):
        name = "both_ways"

        @property
        def noise(self):
            return Noise(2, 0.1, 0)

    with pytest.raises(InputError, match="'both_ways' declares noise and a path; leave one"):
        ExplainOptions([Both()])

    @dataclass(frozen=True)
    class Elsewhere(vlmflow.Signal):
        reads = "attention"

        def of_layer(self, seen):
            return seen.attention.sum(0)

        @property
        def path(self):
            return Path(2)

    with pytest.raises(InputError, match="declares a path, which is seen with features alone"):
        ExplainOptions([Elsewhere()])


def test_a_difference_is_there_on_a_path_alone(vlm):
    @dataclass(frozen=True)
    class NoPath(GradientInput):
        name = "no_path"

        def of_layer(self, seen):
            return seen.difference.sum(1)

    with pytest.raises(InputError, match=r"'no_path' looks at seen.difference, .* define path"):
        vlm.explain(picture(1, (40, 40)), QUESTION, ANSWER, signals=[NoPath()])


def test_an_oracle_cannot_take_a_path():
    @dataclass(frozen=True)
    class ByPath(vlmflow.Ranking):
        signal = "integrated_gradients"
        reads = "answer"

    with pytest.raises(InputError, match="which takes passes of its own"):
        ByPath().check_declared()
