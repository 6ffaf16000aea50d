"""Signals from outside of the package: defined here, measured, saved and shown, against loops."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.reference import Reference, measure_slowly
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError, ModelError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.registry import SIGNALS, as_signals
from vlmflow.flow.signals.saliency import Saliency
from vlmflow.flow.signals.signal import Noise
from vlmflow.lvlm.batch import collate
from vlmflow.reports.explain.page import write_report
from vlmflow.reports.figures.all_figures import save_figures

QUESTION = "What colour is the circle?"
ANSWER = "a red circle"

# float32, both sides: 1e-4 of the layer's largest value is some hundred roundings (6e-8 each).
FLOAT32 = 1e-4


def answer_rows(truth: Reference, target: int) -> list[int]:
    """Rows that predict the target's tokens: all of the answer's for target 0."""
    rows = [int(position) - 1 for position in truth.layout.answer_positions]
    return rows if target == 0 else rows[target - 1 : target]


def rows_so_far(truth: Reference, target: int) -> list[int]:
    """All text rows up to the one that predicts the target's last token."""
    return [row for row in truth.text_rows() if row <= answer_rows(truth, target)[-1]]


def looks(truth: Reference, layer: int, row: int) -> np.ndarray:
    """(P,): mean over the heads."""
    return truth.attention[layer][:, row, truth.layout.image_positions].mean(0)


def by_layer(truth: Reference, of_layer) -> np.ndarray:
    return np.stack([of_layer(layer) for layer in range(len(truth.attention))])


@dataclass(frozen=True)
class Peak(vlmflow.Signal):
    """The strongest look of any answer token."""

    reads = "attention"
    label, colour, source = "peak of attention", "#0072b2", "this file"

    def of_layer(self, seen):
        assert seen.is_answer.all()
        return seen.attention.amax(0)

    @staticmethod
    def slowly(truth, target):
        def of_layer(layer):
            return np.max([looks(truth, layer, row) for row in answer_rows(truth, target)], 0)

        return by_layer(truth, of_layer)


@dataclass(frozen=True)
class Weighted(vlmflow.Signal):
    """All text so far, the answer counted several times."""

    weight: float = 3.0
    reads = "attention"
    rows = "text"

    def of_layer(self, seen):
        weights = torch.where(seen.is_answer, self.weight, 1.0)
        return weights @ seen.attention

    @staticmethod
    def slowly(truth, target):
        answer = answer_rows(truth, 0)

        def of_layer(layer):
            rows = rows_so_far(truth, target)
            return sum((3.0 if row in answer else 1.0) * looks(truth, layer, row) for row in rows)

        return by_layer(truth, of_layer)


@dataclass(frozen=True)
class Supporting(vlmflow.Signal):
    """Saliency that speaks for the answer."""

    reads = "saliency"

    def of_layer(self, seen):
        return seen.signed_saliency.clamp_min(0).sum(0)

    @staticmethod
    def slowly(truth, target):
        image = truth.layout.image_positions
        products = (truth.attention * truth.gradients[target]).sum(1)
        return sum(np.maximum(products[:, row][:, image], 0) for row in truth.text_rows())


@dataclass(frozen=True)
class Both(vlmflow.Signal):
    """Saliency where there is attention too."""

    reads = ("attention", "saliency")

    def of_layer(self, seen):
        assert seen.attention.shape == seen.saliency.shape
        return (seen.attention * seen.saliency).sum(0)

    @staticmethod
    def slowly(truth, target):
        image, flow = truth.layout.image_positions, truth.saliency(target)

        def of_layer(layer):
            rows = truth.text_rows()
            return sum(looks(truth, layer, row) * flow[layer, row, image] for row in rows)

        return by_layer(truth, of_layer)


@dataclass(frozen=True)
class GradientTimesInput(vlmflow.Signal):
    """Features times their gradient, channel by channel."""

    reads = "features"

    def of_layer(self, seen):
        assert not len(seen.is_answer)
        return (seen.features * seen.gradient).abs().sum(1)

    @staticmethod
    def slowly(truth, target):
        image = truth.layout.image_positions
        return np.abs(truth.features * truth.feature_gradients[target])[:, image].sum(-1)


@dataclass(frozen=True)
class Pooled(vlmflow.Signal):
    """Keeps one number per channel of the gradient."""

    scale: float = 1.0
    reads = "features"

    def pool(self, gradient):
        return gradient.sum(0)

    def of_layer(self, seen):
        assert seen.gradient.shape == seen.features.shape[1:]
        return self.scale * seen.features.abs() @ seen.gradient.abs()

    @staticmethod
    def slowly(truth, target):
        image = truth.layout.image_positions

        def of_layer(layer):
            weights = np.abs(truth.feature_gradients[target][layer][image].sum(0))
            return np.abs(truth.features[layer][image]) @ weights

        return by_layer(truth, of_layer)


@dataclass(frozen=True)
class MiddleLayers(vlmflow.Signal):
    """One map: attention summed over all layers but the first and the last."""

    reads = "attention"
    summed = True
    label, source = "middle layers", "this file, too"

    def of_layer(self, seen):
        return seen.attention.sum(0)

    def summed_layers(self, layers):
        return range(1, layers - 1)

    @staticmethod
    def slowly(truth, target):
        def of_layer(layer):
            return sum(looks(truth, layer, row) for row in answer_rows(truth, target))

        return by_layer(truth, of_layer)[1:-1].sum(0, keepdims=True)


@dataclass(frozen=True)
class Shaken(vlmflow.Signal):
    """Peak of attention over noisy pictures."""

    copies: int = 3
    reads = "attention"

    @property
    def noise(self):
        return Noise(self.copies, 0.3, seed=5)

    def of_layer(self, seen):
        return seen.attention.amax(0)


OWN = {
    Peak(): Peak.slowly,
    Weighted(): Weighted.slowly,
    Supporting(): Supporting.slowly,
    Both(): Both.slowly,
    GradientTimesInput(): GradientTimesInput.slowly,
    Pooled(): Pooled.slowly,
    MiddleLayers(): MiddleLayers.slowly,
    Saliency(): Reference.saliency_map,
}
"""Signals, and what they are by loops: a function of the reference and the target."""


def picture(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(values)


def lvlm(**options) -> vlmflow.LVLM:
    return vlmflow.LVLM(*tiny_llava(kv_heads=2, **options))


def slow(prompt, inputs=None) -> Reference:
    vlm = lvlm(attn_implementation="eager")
    hook = "post_attention_layernorm"
    given = prompt.inputs if inputs is None else inputs
    return measure_slowly(vlm.model, vlm.decoder_layers, given, prompt.layout, "logprob", hook)


def assert_close(values, expected, what):
    """Compare with the largest value of each layer."""
    assert values.shape == expected.shape, what
    largest = np.abs(expected).max(-1, keepdims=True)
    worst = (np.abs(values - expected) / np.maximum(largest, 1e-30)).max()
    assert worst <= FLOAT32, f"{what}: off by {worst:.2e} of the layer's largest value"


@pytest.fixture(scope="module")
def flow() -> vlmflow.InformationFlow:
    """Everything of this file beside built-in signals, in one call."""
    signals = [*OWN, "flow_map(layers=2)", Shaken()]
    return lvlm().explain([picture(1), picture(2)], QUESTION, ANSWER, signals=signals)


@pytest.fixture(scope="module")
def truth(flow) -> Reference:
    return slow(lvlm().prepare([picture(1), picture(2)], QUESTION, ANSWER))


@pytest.mark.parametrize("signal", OWN, ids=lambda signal: signal.known_as())
def test_maps_agree_with_eager_attention(signal, flow, truth):
    """Per layer, for the whole answer and for each of its tokens."""
    name = signal.known_as()
    assert len(flow.targets) == 1 + len(flow.answer_tokens) > 2
    for target in range(len(flow.targets)):
        expected = OWN[signal](truth, target)
        assert_close(flow.maps[name][:, target], expected, f"{name}, target {target}")
    assert np.ptp(flow.maps[name][0, 0]) > 0


def test_the_whole_answer_alone_is_the_same(flow):
    """Without a pass per token."""
    pictures = [picture(1), picture(2)]
    alone = lvlm().explain(pictures, QUESTION, ANSWER, signals=OWN, per_token=False)
    for signal in OWN:
        name = signal.known_as()
        assert alone.maps[name].shape[1] == 1
        assert_close(alone.maps[name][:, 0], flow.maps[name][:, 0], name)


def test_low_memory_gives_the_same_maps(flow):
    pictures = [picture(1), picture(2)]
    again = lvlm().explain(pictures, QUESTION, ANSWER, signals=OWN, low_memory=True)
    for signal in OWN:
        name = signal.known_as()
        assert_close(again.maps[name], flow.maps[name], name)


def test_noisy_pictures_are_averaged(flow):
    """Against eager attention, one noisy picture after the other."""
    prompt = lvlm().prepare([picture(1), picture(2)], QUESTION, ANSWER)
    pixels = prompt.inputs["pixel_values"]
    generator = torch.Generator().manual_seed(5)
    total = 0
    for _ in range(3):
        noisy = pixels + 0.3 * torch.randn(pixels.shape, generator=generator)
        truth = slow(prompt, {**prompt.inputs, "pixel_values": noisy})
        total = total + Peak.slowly(truth, 2)
    assert_close(flow.maps["shaken"][:, 2], total / 3, "shaken")
    assert np.abs(flow.maps["shaken"] - flow.maps["peak"]).max() > 1e-3


def test_a_padded_batch_is_its_rows():
    """Left padding, answers of different lengths, one and two pictures."""
    vlm = lvlm()
    prompts = [
        vlm.prepare(picture(1), "What is it?", ANSWER),
        vlm.prepare(picture(2), "Is there a blue square in the picture?", "no"),
        vlm.prepare([picture(3), picture(4)], "Which number is printed?", "7 3"),
    ]
    inputs, layouts = collate(prompts, vlm.processor.tokenizer.pad_token_id)
    options = ExplainOptions(OWN)
    batch = measure(vlm.model, vlm.decoder_layers, inputs, layouts, options)
    for prompt, measured in zip(prompts, batch, strict=True):
        truth = slow(prompt)
        for signal in OWN:
            name = signal.known_as()
            for target in range(measured.maps[name].shape[1]):
                what = f"{name}, target {target} of {prompt.answer!r}"
                expected = OWN[signal](truth, target)
                assert_close(measured.maps[name][:, target], expected, what)


def test_a_layer_without_gradient_is_undefined(flow):
    """What the last layer's norm shows of image tokens reaches no answer."""
    for name in ("gradient_times_input", "pooled"):
        assert flow.flag(name, layer=3) == "undefined"
        assert flow.flag(name, layer=2) == "ok"
    assert flow.flag("middle_layers") == "ok"


def test_another_hook_point():
    @dataclass(frozen=True)
    class AtInput(GradientTimesInput):
        hook: str = "layer_input"

        @property
        def hook_point(self):
            return self.hook

    vlm = lvlm()
    signals = [AtInput(), GradientTimesInput(), AtInput("layer_output")]
    flow = vlm.explain(picture(), QUESTION, ANSWER, signals=signals)
    names = ("at_input", "gradient_times_input", "at_input(hook='layer_output')")
    assert flow.signals == names
    inputs, norms, outputs = flow.maps.values()
    # One layer's output is the next one's input, and the last one's input reaches the answer.
    assert_close(inputs[1:], outputs[:-1], "streams")
    assert flow.flag("at_input", layer=3) == "ok"
    assert np.abs(inputs - norms).max() > 0
    with pytest.raises(InputError, match=r"hook='nowhere', but .* has no such part"):
        vlm.explain(picture(), QUESTION, ANSWER, signals=[AtInput("nowhere")])


def test_what_a_signal_is_called_survives_saving(flow, tmp_path):
    again = vlmflow.InformationFlow.load(flow.save(tmp_path / "flow"))
    assert again.signals == flow.signals
    assert again.about == flow.about
    assert set(again.signals) >= {signal.known_as() for signal in OWN}
    peak = again.map_info("peak")
    assert (peak.label, peak.colour, peak.source) == ("peak of attention", "#0072b2", "this file")
    assert peak.summary == "The strongest look of any answer token."
    assert again.map_info("middle_layers").summed == (1, 2)
    assert again.map_info("weighted").label == "weighted"  # its name where no label is given
    for name in flow.signals:
        np.testing.assert_array_equal(again.maps[name], flow.maps[name])
    assert {"name": "weighted", "weight": 3.0} in again.settings["signals"]
    assert {"name": "flow_map", "layers": 2} in again.settings["signals"]


def test_maps_are_in_tables_pages_and_figures(flow, tmp_path):
    frame = flow.convergence_frame()
    for signal in OWN:
        rows = frame[frame["signal"] == signal.known_as()]
        assert len(rows) == (1 if signal.summed else 4) * len(flow.targets)
    assert flow.pixel_map("peak", layer=1, target=1, image=1).shape == (60, 80)
    page = write_report(flow, tmp_path / "report.html").read_text("utf-8")
    head = json.loads(
        re.search(r'<script type="application/json" id="head">(.*?)</script>', page)[1]
    )
    assert head["signals"] == list(flow.signals)
    about = head["about"]["peak"]
    assert about["label"] == "peak of attention"
    assert about["colour"] == "#0072b2"
    assert about["source"] == "this file"
    assert head["about"]["middle_layers"]["summed"] == [1, 2]
    paths = save_figures(flow, tmp_path / "figures", ("png",))
    assert {path.stem for path in paths} >= {f"maps_{signal.known_as()}" for signal in OWN}


def test_two_of_one_class_have_two_names(tmp_path):
    signals = [Weighted(), Weighted(weight=2.0), "weighted(weight=5.0)", Weighted(3.0), Peak()]
    flow = lvlm().explain(picture(), QUESTION, "red", signals=signals)
    assert flow.signals == ("weighted", "weighted(weight=2.0)", "weighted(weight=5.0)", "peak")
    labels = [flow.map_info(name).label for name in flow.signals]
    assert labels == [
        "weighted",
        "weighted (weight=2.0)",
        "weighted (weight=5.0)",
        "peak of attention",
    ]
    assert np.abs(flow.maps["weighted"] - flow.maps["weighted(weight=2.0)"]).max() > 1e-3
    assert vlmflow.InformationFlow.load(flow.save(tmp_path / "flow")).signals == flow.signals
    alone = lvlm().explain(picture(), QUESTION, "red", signals=["weighted(weight=2.0)"])
    assert alone.signals == ("weighted",)
    assert {"name": "weighted", "weight": 2.0} in alone.settings["signals"]
    np.testing.assert_array_equal(alone.maps["weighted"], flow.maps["weighted(weight=2.0)"])


def refused(message: str):
    return pytest.raises(InputError, match=message)


def declared(**body):
    """A signal of its own for each test; every one is called 'bad'."""
    body.setdefault("of_layer", lambda self, seen: seen.attention.sum(0))
    return dataclass(frozen=True)(type("Bad", (vlmflow.Signal,), body))()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "signal 'bad' does not declare what it reads; write for example reads = 'attention'"),
        ({"reads": "pixels"}, "declares reads='pixels', but 'pixels' is none of attention, sal"),
        ({"reads": ("saliency", "queries")}, "'queries' is none of"),
        (
            {"reads": ("features", "attention")},
            "these are seen at different times; read attention and saliency",
        ),
        ({"reads": ("saliency", "features")}, "these are seen at different times"),
        ({"reads": "attention", "rows": "all"}, "declares rows='all', which is none of answer, t"),
        ({"reads": "attention", "colour": "blue"}, "colour='blue', which is not a colour; write"),
        ({"reads": "attention", "colour": "#12345"}, "colour='#12345', which is not a colour"),
        ({"reads": "attention", "name": "two parts"}, "name='two parts' of Bad is not a name"),
    ],
)
def test_bad_declarations_are_refused_before_anything_runs(body, message):
    with refused(message):
        as_signals([declared(**body)])
    with refused(message):
        ExplainOptions(signals=[declared(**body)])


def test_a_signal_that_says_nothing_is_refused():
    @dataclass(frozen=True)
    class Mute(vlmflow.Signal):
        reads = "attention"

    with refused(r"signal 'mute' says nothing: define of_layer\(self, seen\)"):
        as_signals([Mute()])


@pytest.mark.parametrize(
    ("reads", "attribute", "word"),
    [
        ("attention", "saliency", "saliency"),
        ("attention", "signed_saliency", "saliency"),
        ("attention", "features", "features"),
        ("saliency", "attention", "attention"),
        ("saliency", "gradient", "features"),
        ("features", "attention", "attention"),
        (("attention", "saliency"), "features", "features"),
    ],
)
def test_what_was_not_declared_is_not_there(reads, attribute, word):
    """Not even where another signal of the same run reads it."""
    bad = declared(reads=reads, of_layer=lambda self, seen: getattr(seen, attribute).sum(0))
    signals = [Both(), Pooled(), bad]
    with refused(rf"signal 'bad' looks at seen\.{attribute} but declares .*; add '{word}' to it"):
        lvlm().explain(picture(), QUESTION, "red", signals=signals)


@pytest.mark.parametrize("reads", ["attention", "saliency", "features"])
@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (torch.zeros(15), r"\(15,\)"),
        (torch.zeros(1, 16), r"\(1, 16\)"),
        (torch.tensor(0.0), r"\(\)"),
        ([0.0] * 16, "list"),
        (None, "NoneType"),
    ],
    ids=["short", "deep", "scalar", "list", "none"],
)
def test_wrong_shapes_are_refused(reads, result, shown):
    bad = declared(reads=reads, of_layer=lambda self, seen: result)
    message = f"signal 'bad' gave {shown} where a value for each of the 16 image tokens is needed"
    with refused(message):
        lvlm().explain(picture(), QUESTION, "red", signals=[bad])


def state_of(model):
    """Hooks (transformers keeps some of its own), replaced forwards, gradients, and settings."""
    hooks = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for module in model.modules()
    ]
    gradients = [(weight.requires_grad, weight.grad is None) for weight in model.parameters()]
    return hooks, gradients, model.config.get_text_config()._attn_implementation


@pytest.mark.parametrize("reads", ["attention", "saliency", "features"])
def test_a_signal_that_fails_leaves_the_model_as_it_was(reads):
    vlm = lvlm()
    expected = vlm.explain(picture(), QUESTION, "red", signals=["saliency"])
    before = state_of(vlm.model)

    def of_layer(self, seen):
        raise RuntimeError(f"cannot look at layer {seen.layer}")

    with pytest.raises(RuntimeError, match="cannot look at layer"):
        vlm.explain(picture(), QUESTION, "red", signals=[declared(reads=reads, of_layer=of_layer)])
    assert state_of(vlm.model) == before
    again = vlm.explain(picture(), QUESTION, "red", signals=["saliency"])
    np.testing.assert_array_equal(again.maps["saliency"], expected.maps["saliency"])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(number):
    def of_layer(self, seen):
        return torch.full_like(seen.attention[0], number if seen.layer == 2 else 1.0)

    message = "the bad signal is not finite at layer 2 of sample 0; .*never divides by zero"
    with pytest.raises(ModelError, match=message):
        lvlm().explain(
            picture(), QUESTION, "red", signals=[declared(reads="attention", of_layer=of_layer)]
        )


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([Peak], r"Peak is a class; pass an instance of it: Peak\(\)"),
        ("peak", r"signals='peak' is a text; pass a list of names: \['peak'\]"),
        (Peak(), r"signals=Peak\(\) is not a list; pass one of names and instances"),
        (Peak, "is not a list; pass one of names and instances"),
        ([], "signals is empty; there are attention"),
        ([7], "7 is not a signal; give a name"),
        (["peaks"], "signal 'peaks' is unknown; there are attention.*peak"),
        (["weighted(strength=2)"], "signal 'weighted' has no parameter 'strength'; .* weight"),
        (["peak(weight=2)"], "signal 'peak' has no parameter 'weight'; it has none"),
        (["weighted(2)"], "'2' in .* is not a parameter; write name=3"),
        ([Weighted(weight=[1])], "weighted.weight is a list, which can change after it was passed"),
    ],
    ids=str,
)
def test_what_is_not_a_signal_is_refused(signals, message):
    with refused(message):
        lvlm().explain(picture(), QUESTION, "red", signals=signals)


@pytest.mark.parametrize(
    "layers", [range(0), range(2, 9), range(-1, 2), range(0, 4, 2), [0, 1]], ids=str
)
def test_sums_over_layers_that_are_not_there_are_refused(layers):
    """Zeros would look like a finding."""
    bad = declared(reads="attention", summed=True, summed_layers=lambda self, count: layers)
    with refused("signal 'bad' sums layers .* of a model with 4 decoder layers; return a range"):
        lvlm().explain(picture(), QUESTION, "red", signals=[bad])


def test_layers_without_attention_say_so_and_alone_give_nothing():
    """Qwen3-Next: layers 0 to 2 of four have linear attention."""
    text = {
        "linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }  # fmt: skip
    vlm = lvlm(text_model="qwen3_next", text_config=text)
    signals = [Peak(), Both(), Pooled()]
    flow = vlm.explain(picture(), QUESTION, "red", signals=signals)
    for name in ("peak", "both"):
        flags = [flow.flag(name, layer=layer) for layer in range(4)]
        assert flags == ["no attention here"] * 3 + ["ok"]
    assert flow.flag("pooled", layer=0) == "ok"
    with pytest.raises(ModelError, match=r"nothing was measured for 'middle_layers': .* 1 to 2"):
        vlm.explain(picture(), QUESTION, "red", signals=[MiddleLayers()])


def test_two_classes_of_one_name_are_refused():
    names = {"__name__": "a_notebook"}
    cell = """
from dataclasses import dataclass
import vlmflow

@dataclass(frozen=True)
class Again(vlmflow.Signal):
    reads = "attention"
    def of_layer(self, seen):
        return seen.attention.sum(0)
"""
    exec(cell, names)
    first = names["Again"]
    exec(cell, names)
    second = names["Again"]
    assert SIGNALS.find("again") is second
    with refused("two signals are called 'again'; give one of them another name"):
        as_signals([first(), second()])


def test_an_installed_package_adds_signals(monkeypatch):
    @dataclass(frozen=True)
    class Theirs(Peak):
        pass

    module = ModuleType("their_signals")
    module.Theirs = Theirs
    monkeypatch.setitem(sys.modules, "their_signals", module)
    point = metadata.EntryPoint("theirs", "their_signals:Theirs", SIGNALS.group)

    def entry_points(*, group, name=None):
        assert group == "vlmflow.signals"
        return metadata.EntryPoints([point] if name in (None, point.name) else [])

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    monkeypatch.setattr(Theirs, "__module__", "their_signals")
    (signal,) = as_signals(["theirs"])
    assert type(signal) is Theirs
    assert signal.label == "peak of attention"
