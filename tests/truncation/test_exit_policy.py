"""Exits per input: what signals read, who leaves, and that nothing else changes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer

from tests.support.families import FAMILIES, LAYERS, SIZES, picture
from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.identity import weights_digest
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.probe import Probe
from vlmflow.truncation.exit_signals.registry import EXIT_SIGNALS
from vlmflow.truncation.exit_signals.signal import READS, ExitSignal
from vlmflow.truncation.truncation import Truncation

QUESTIONS = (
    "Which number is on the green triangle?",
    "Is there a blue square in the picture, or a green one, or a circle, or any number at all, or "
    "nothing but the plain grey ground on which everything else is drawn?",
    "Why?",
)
NEVER, ALWAYS = math.inf, -math.inf
SEEN: list[tuple[int, dict[str, float]]] = []


@dataclass(frozen=True)
class Spy(ExitSignal):
    """Notes what every signal says, and lets everybody stay."""

    name = "spy"
    reads = READS
    weights: tuple = ()

    def value(self, seen):
        signals = [EXIT_SIGNALS.read(name) for name in EXIT_SIGNALS.bundled() if name != "probe"]
        signals.append(Probe(weights=self.weights))
        noted = {signal.known_as(): float(signal.value(seen)) for signal in signals}
        SEEN.append((seen.layer, noted))
        return seen.last.new_zeros(())


@dataclass(frozen=True)
class Short(ExitSignal):
    """Lets short questions leave: minus the number of words after the picture."""

    name = "short_question"

    def value(self, seen):
        return -seen.last.new_tensor(float(len(seen.text)))


def exits(layer, keep=0, signal="image_attention", at=ALWAYS, **more) -> ExitPolicy:
    layers = layer if isinstance(layer, tuple) else (layer,)
    amounts, thresholds = (keep,) * len(layers), (at,) * len(layers)
    return ExitPolicy(layers, amounts, signal=signal, thresholds=thresholds, **more)


@pytest.fixture(scope="module")
def vlm() -> LVLM:
    return LVLM(*tiny_llava(3, layers=4, heads=4, kv_heads=2, attn_implementation="sdpa"))


def test_signals_read_what_eager_attention_shows(vlm):
    """Every bundled signal at every layer, against eager matrices and a hand-made lens."""
    width = vlm.model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 2 * width, generator=generator).tolist()
    weights = tuple((layer, 0.5, tuple(row)) for layer, row in enumerate(drawn))
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[1])
    SEEN.clear()
    policy = exits((1, 2, 3), signal=Spy(weights), at=NEVER)
    answer = vlm.generate_ids(prompt, max_new_tokens=1, truncation=policy)
    assert [layer for layer, _ in SEEN] == [1, 2, 3]
    assert answer == vlm.generate_ids(prompt, max_new_tokens=1)

    model, _ = tiny_llava(3, layers=4, heads=4, kv_heads=2, attn_implementation="eager")
    values = {}
    for number, layer in enumerate(model.get_decoder().layers):
        layer.self_attn.v_proj.register_forward_hook(
            lambda _module, _args, output, number=number: values.update({number: output[0]})
        )
    with torch.no_grad():
        output = model(**prompt.inputs, output_attentions=True, output_hidden_states=True)
    image = prompt.layout.image_positions
    text = [p for p in range(len(prompt.layout)) if p > image.max()]
    for layer, noted in SEEN:
        states = output.hidden_states[layer][0]
        matrix = output.attentions[layer - 1][0][:, -1]  # (heads, N)
        assert noted["image_attention"] == pytest.approx(
            -float(matrix[:, image].sum(1).mean()), abs=1e-5
        )
        v = values[layer - 1].view(len(states), 2, -1)
        per_head = torch.stack([v[:, head // 2] for head in range(4)])  # (heads, N, D)
        whole = torch.einsum("hn,hnd->hd", matrix, per_head)
        part = torch.einsum("hn,hnd->hd", matrix[:, image], per_head[:, image])
        assert noted["image_contribution"] == pytest.approx(
            -float(part.norm() / whole.norm()), abs=1e-5
        )
        step = states[-1] - output.hidden_states[layer - 1][0, -1]
        assert noted["hidden_step"] == pytest.approx(
            -float(step.norm() / states[-1].norm()), abs=1e-5
        )
        with torch.no_grad():
            lens = model.lm_head(model.get_decoder().norm(states[-1])).log_softmax(-1)
        ordered = lens.sort(descending=True).values
        assert noted["lens_margin"] == pytest.approx(float(ordered[0] - ordered[1]), abs=1e-5)
        assert noted["lens_entropy"] == pytest.approx(float((lens.exp() * lens).sum()), abs=1e-4)
        row = torch.tensor(weights[layer][2])
        expected = float(row[:width] @ states[-1] + row[width:] @ states[text].mean(0)) + 0.5
        assert noted["probe"] == pytest.approx(expected, abs=1e-4)


def test_who_reaches_no_threshold_keeps_all_and_nothing_is_touched(vlm):
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[0])
    before, plain = vlm.generate_with(prompt, max_new_tokens=5)
    policy = exits((1, 2, 3), signal="hidden_step", at=NEVER)
    after, output = vlm.generate_with(prompt, max_new_tokens=5, truncation=policy)
    assert after == before
    layers = output.past_key_values.layers
    assert {type(layer) for layer in layers} == {DynamicLayer}
    for own, other in zip(layers, plain.past_key_values.layers, strict=True):
        assert torch.equal(own.keys, other.keys)


@pytest.mark.parametrize("keep", [0, 0.25])
def test_leaving_is_what_a_truncation_does(vlm, keep):
    """At the first layer whose threshold is reached, and at no later one again."""
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[1])
    policy = ExitPolicy((1, 2, 3), (keep,) * 3, signal="lens_margin", thresholds=(NEVER, 0.0, 0.0))
    ids, output = vlm.generate_with(prompt, max_new_tokens=5, truncation=policy)
    cut = Truncation(2, keep)
    expected, plain = vlm.generate_with(prompt, max_new_tokens=5, truncation=cut)
    assert ids == expected
    for own, other in zip(output.past_key_values.layers, plain.past_key_values.layers, strict=True):
        torch.testing.assert_close(own.keys, other.keys)
    with policy(vlm.model) as run:
        vlm.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
    assert run.exit_layers.tolist() == [2]
    with cut(vlm.model) as run:
        vlm.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
    assert run.exit_layers.tolist() == [2]


def logits_of(vlm, inputs, policy):
    """Logits of three greedy tokens, (B, 3, vocabulary), and what the run says of itself."""
    with policy(vlm.model) as run, torch.no_grad():
        output = vlm.model.generate(
            **inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return torch.stack(output.logits, dim=1), run.exit_layers.tolist(), run.tokens_per_layer


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_batch_decides_row_by_row(family):
    """Some rows leave early, some late, some never: logits are those of each prompt alone."""
    vlm = LVLM(*family.build("sdpa"))
    layers = tuple(range(family.first_attention + 1, LAYERS))
    # Families whose pictures must have one shape, or a picture per prompt, take the same one.
    sizes = (SIZES[0],) * 3 if family.one_shape else (SIZES[0], SIZES[1], SIZES[0])
    prompts = [
        vlm.prepare([picture(seed, size)], question)
        for seed, size, question in zip(range(3), sizes, QUESTIONS, strict=True)
    ]
    words = {}
    for row, prompt in enumerate(prompts):
        SEEN.clear()
        vlm.generate_ids(
            prompt, max_new_tokens=1, truncation=exits(layers[:1], signal=Noting(), at=NEVER)
        )
        words[row] = SEEN.pop()[1]["text"]
    ordered = sorted(words.values(), reverse=True)  # the shortest question leaves first
    assert len(set(ordered)) == 3
    thresholds = (-ordered[2],) + (-ordered[1],) * (len(layers) - 1)
    policy = ExitPolicy(layers, (0,) * len(layers), signal=Short(), thresholds=thresholds)
    inputs, _ = collate(prompts, pad_id(vlm.processor.tokenizer))
    together, left, tokens = logits_of(vlm, inputs, policy)
    expected = {
        ordered[2]: layers[0],
        ordered[1]: layers[1] if len(layers) > 1 else LAYERS,
        ordered[0]: LAYERS,
    }
    assert left == [expected[words[row]] for row in range(3)]
    for row, prompt in enumerate(prompts):
        alone, [own], counts = logits_of(vlm, prompt.inputs, policy)
        assert own == left[row]
        assert counts[0].tolist() == tokens[row].tolist()
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=3e-5)
        if own < LAYERS:
            cut, _, _ = logits_of(vlm, prompt.inputs, Truncation(own, 0))
            torch.testing.assert_close(alone, cut, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Noting(ExitSignal):
    """Notes how much text follows the picture."""

    name = "noting"

    def value(self, seen):
        SEEN.append((seen.layer, {"text": len(seen.text)}))
        return seen.last.new_zeros(())


def test_beams_and_further_turns(vlm):
    """Beams of a prompt leave together; a second turn goes on from what the first left."""
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[0])
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    answers = []
    for policy in (exits(2), Truncation(2, 0)):
        with policy(vlm.model):
            answers.append(vlm.model.generate(**prompt.inputs, **options))
    assert torch.equal(*answers)
    turns = []
    more = torch.tensor([[5, 6, 7, 8]])
    for policy in (exits(2), Truncation(2, 0)):
        with policy(vlm.model):
            first = vlm.model.generate(
                **prompt.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
            )
            ids = torch.cat([first.sequences, more], dim=1)
            turns.append(
                vlm.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
                    past_key_values=first.past_key_values,
                )
            )  # fmt: skip
    assert torch.equal(*turns)


def test_a_further_turn_without_a_picture_may_be_truncated_anew(vlm):
    """Its ids are the whole conversation's; the image tokens among them are in the cache."""
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[0])
    answers = []
    for policies in ((exits(2), exits(1)), (Truncation(2, 0), Truncation(1, 0))):
        with policies[0](vlm.model):
            first = vlm.model.generate(
                **prompt.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
            )
        ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7, 8]])], dim=1)
        with policies[1](vlm.model) as run:
            answers.append(
                vlm.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
                    past_key_values=first.past_key_values,
                )
            )  # fmt: skip
        with pytest.raises(InputError, match="no prompt with pictures"):
            run.exit_layers  # noqa: B018 (asking is the test)
    assert torch.equal(*answers)


def test_sampling_is_refused_wherever_it_is_asked_for(vlm):
    """A generation config is the second argument of ``generate`` and needs no name."""
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[0])
    promise = {"model": {"name": "tiny", "dtype": "float32"}, "weights": weights_digest(vlm.model)}
    policy = replace(exits(2), certificate=promise)
    config = GenerationConfig(do_sample=True, max_new_tokens=1)
    with policy(vlm.model), pytest.raises(InputError, match="do_sample=True, but this policy"):
        vlm.model.generate(
            prompt.inputs["input_ids"], config, pixel_values=prompt.inputs["pixel_values"]
        )


def test_a_policy_survives_json(vlm):
    policy = ExitPolicy(
        (1, 3),
        (0.5, 0.25),
        "uniform",
        signal=Probe(weights=((1, 0.5, (1.0, 2.0)),)),
        thresholds=(0.25, 1),
    )
    assert ExitPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert "probe" in repr(policy)
    assert "2.0" not in repr(policy)  # a probe's weights fill pages


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": "nothing"}, "exit signal 'nothing' is unknown; there are"),
        ({"signal": ""}, "exit signal"),
        ({"thresholds": (1.0,)}, "2 exit layer(s) and 1 threshold(s)"),
        ({"thresholds": (1.0, math.nan)}, "threshold=nan"),
        ({"layer": (0, 2)}, "layer=0 has none"),
        ({"remainder": "average"}, "an exit drops"),
        ({"positions": "repack"}, "an exit drops"),
    ],
)
def test_impossible_policies(settings, message):
    plain = {"layer": (1, 2), "keep": (0, 0), "signal": "hidden_step", "thresholds": (0.0, 0.0)}
    with pytest.raises(InputError) as caught:
        ExitPolicy(**(plain | settings))
    assert message in str(caught.value)


def test_signals_that_say_nothing_usable(vlm):
    @dataclass(frozen=True)
    class Peeking(ExitSignal):
        def value(self, seen):
            return seen.logits.max()

    @dataclass(frozen=True)
    class Many(ExitSignal):
        def value(self, seen):
            return seen.last

    @dataclass(frozen=True)
    class Undefined(ExitSignal):
        def value(self, seen):
            return seen.last.sum() * math.nan

    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[0])
    for signal, message in (
        (Peeking(), "looks at seen.logits but declares reads="),
        (Many(), "was to give one number, but value gave shape"),
        (Undefined(), "not a number"),
    ):
        with pytest.raises(InputError, match=message):
            vlm.generate_ids(prompt, max_new_tokens=1, truncation=exits(2, signal=signal))
    with pytest.raises(InputError, match="define value"):
        exits(2, signal=type("Silent", (ExitSignal,), {})())


def test_a_layer_beyond_the_model_is_refused(vlm):
    prompt = vlm.prepare([picture(1, SIZES[0])], QUESTIONS[0])
    with pytest.raises((InputError, ModelError), match="layer=9"):
        vlm.generate_ids(prompt, max_new_tokens=1, truncation=exits(9))
