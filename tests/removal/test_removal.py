"""Removal curves equal the truncation engine run once per layer; cliffs are found as defined."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import InputError, ModelError
from vlmflow.removal.cliff import LOSSES, cliff, cliff_layer, losses
from vlmflow.removal.curve import RemovalCurve, removal_curve, removal_curves
from vlmflow.truncation import Truncation
from vlmflow.truncation.amounts import Count
from vlmflow.truncation.rankings.registry import RANKINGS, as_ranking

QUESTIONS = (
    "What colour is the circle?",
    "Is there a blue square in the picture? yes no",
    "Which number is printed on the green triangle? 1 2 3",
)
ANSWERS = ("red", "a small red circle above", "4 5 6")
CHOOSING = tuple(name for name in RANKINGS.bundled() if not as_ranking(name).is_oracle)


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((70, 60), Image.Resampling.BICUBIC)


def prompts(vlm, pictures):
    """Prompts of different lengths; a system text stands before the first picture of some."""
    made = []
    for number, count in enumerate(pictures):
        content = [{"type": "image", "image": picture(10 * number + i)} for i in range(count)]
        content.append({"type": "text", "text": QUESTIONS[number % 3]})
        messages = [{"role": "user", "content": content}]
        if number % 2:
            system = [{"type": "text", "text": "You look at pictures."}]
            messages = [{"role": "system", "content": system}, *messages]
        made.append(vlm.prepare(None, messages, ANSWERS[number % 3]))
    return made


def one_by_one(vlm, prompt, layer, keep, ranking):
    """Logits (T + 1, vocabulary) of the engine: the prompt first, then the answer on its cache."""
    inputs, ids = prompt.inputs, prompt.inputs["input_ids"]
    start = int(prompt.layout.answer_positions[0])
    policy = Truncation(layer=layer, keep=keep, rank_by=ranking)
    with torch.no_grad(), policy(vlm.model):
        first = vlm.model(
            input_ids=ids[:, :start], attention_mask=inputs["attention_mask"][:, :start],
            pixel_values=inputs["pixel_values"], use_cache=True,
        )  # fmt: skip
        rest = vlm.model(
            input_ids=ids[:, start:], attention_mask=inputs["attention_mask"],
            past_key_values=first.past_key_values, use_cache=True,
        )  # fmt: skip
    return torch.cat([first.logits[0, -1:], rest.logits[0]])


def expect_same(vlm, prompt, curve, keep, ranking, tolerance=2e-5):
    with torch.no_grad():
        logits = vlm.model(**prompt.inputs).logits[0]
    rows = torch.from_numpy(np.append(prompt.layout.answer_rows, len(prompt.layout) - 1))
    reference = logits[rows].log_softmax(-1)
    answer = torch.tensor(prompt.answer_ids)
    torch.testing.assert_close(
        torch.from_numpy(curve.untouched_logprob), reference[torch.arange(len(answer)), answer],
        rtol=1e-4, atol=tolerance,
    )  # fmt: skip
    for number, layer in enumerate(curve.layers):
        logits = one_by_one(vlm, prompt, layer, keep, ranking)
        chances = logits.log_softmax(-1)
        kl = torch.nn.functional.kl_div(chances, reference, log_target=True, reduction="none")
        for name, measured, expected in (
            ("kl", curve.kl, kl.sum(-1)[:-1]),
            ("logprob", curve.logprob, chances[torch.arange(len(answer)), answer]),
        ):
            torch.testing.assert_close(
                torch.from_numpy(measured[number]), expected, rtol=1e-3, atol=tolerance,
                msg=lambda text, name=name, layer=layer: f"{name} at layer {layer}: {text}",
            )  # fmt: skip
        agrees = logits.argmax(-1) == reference.argmax(-1)
        assert curve.agrees[number].tolist() == agrees[:-1].tolist()
        assert bool(curve.ends_alike[number]) == bool(agrees[-1])


def drawn_cases(count):
    draw = random.Random(579)
    cases = []
    for number in range(count):
        heads, kv_heads = draw.choice([(4, 4), (4, 2), (4, 1)])
        keep = draw.choice([0, 0, 1, 5, 0.25, 0.5])
        ranking = draw.choice(CHOOSING)
        pictures = [draw.choice([1, 1, 2]) for _ in range(draw.choice([1, 2, 3]))]
        attention = draw.choice(["eager", "sdpa"])
        name = f"{number}-{keep}-{ranking}-{attention}-{len(pictures)}"
        cases.append(
            pytest.param(number, heads, kv_heads, pictures, attention, keep, ranking, id=name)
        )
    return cases


@pytest.mark.parametrize(
    ("seed", "heads", "kv_heads", "pictures", "attention", "keep", "ranking"), drawn_cases(40)
)
def test_a_curve_is_one_truncation_per_layer(
    seed, heads, kv_heads, pictures, attention, keep, ranking
):
    vlm = LVLM(
        *tiny_llava(seed, layers=3, heads=heads, kv_heads=kv_heads, attn_implementation=attention)
    )
    batch = prompts(vlm, pictures)
    curves = removal_curves(vlm, batch, keep=keep, rank_by=ranking if keep else None)
    for prompt, curve in zip(batch, curves, strict=True):
        begins = 1 if keep and as_ranking(ranking).needs_layer_before else 0
        assert curve.layers == tuple(range(begins, 3))
        expect_same(vlm, prompt, curve, keep, ranking)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keep", [0, 3])
def test_a_sliding_window_slides_over_positions(keep, attention):
    vlm = LVLM(
        *tiny_llava(
            5, layers=3, text_model="mistral", text_config={"sliding_window": 9},
            attn_implementation=attention,
        )
    )  # fmt: skip
    batch = prompts(vlm, [1, 2])
    curves = removal_curves(vlm, batch, keep=keep, rank_by="key_norm" if keep else None)
    for prompt, curve in zip(batch, curves, strict=True):
        expect_same(vlm, prompt, curve, keep, "key_norm")


def test_keeping_all_loses_nothing():
    vlm = LVLM(*tiny_llava(2, layers=3))
    (prompt,) = prompts(vlm, [1])
    (curve,) = removal_curves(vlm, [prompt], keep=1.0, rank_by="diversity")
    assert curve.kl.max() < 1e-6
    assert curve.agrees.all()
    assert curve.same_answer.all()
    np.testing.assert_allclose(curve.logprob_change, 0, atol=1e-5)


def test_the_generated_answer_is_kept_where_the_curve_says_so():
    """``same_answer`` is what greedy decoding of a truncated model does, for every layer."""
    seen = set()
    for seed in range(12):
        vlm = LVLM(*tiny_llava(seed, layers=4))
        curve = removal_curve(vlm, picture(seed), QUESTIONS[0], max_new_tokens=3)
        prompt = vlm.prepare(picture(seed), QUESTIONS[0])
        untouched = vlm.generate_ids(prompt, max_new_tokens=3)
        for layer, same in zip(curve.layers, curve.agrees.all(1), strict=True):
            ids = vlm.generate_ids(
                prompt, max_new_tokens=3, truncation=Truncation(layer=layer, keep=0)
            )
            assert (ids[: len(untouched)] == untouched) == bool(same)
            seen.add(bool(same))
    assert seen == {True, False}


def test_half_precision_and_the_model_is_left_as_found():
    model, processor = tiny_llava(3, layers=3, dtype=torch.bfloat16)
    vlm = LVLM(model.train(), processor)
    (prompt,) = prompts(vlm, [1])
    with torch.no_grad():
        model(**prompt.inputs)  # transformers sets up hooks of its own in a first call
    hooks = [len(module._forward_hooks) for module in model.modules()]
    before = model.config.get_text_config()._attn_implementation
    (curve,) = removal_curves(vlm, [prompt], keep=2, rank_by="last_attention")
    assert np.isfinite(curve.kl).all()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model.config.get_text_config()._attn_implementation == before


def test_broken_weights_are_said_to_be_broken():
    model, processor = tiny_llava(3, layers=3)
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    vlm = LVLM(model, processor)
    with pytest.raises(ModelError, match="not finite"):
        removal_curve(vlm, picture(0), QUESTIONS[0], "red")
    with torch.no_grad():
        rows = model(**vlm.prepare(picture(0), QUESTIONS[0]).inputs).logits
    assert rows.shape[1] > 16, "a hook still cuts the rows"


def test_a_layer_that_ignores_the_cache_is_refused(monkeypatch):
    """The tokens before the picture would be missing without a word."""
    model, processor = tiny_llava(3, layers=3)
    layer = model.model.language_model.layers[1]
    real = layer.forward

    def without_cache(hidden_states, **options):
        options["attention_mask"] = None
        return real(hidden_states, **{**options, "past_key_values": None})

    monkeypatch.setattr(layer, "forward", without_cache)
    with pytest.raises(ModelError, match="layer 1 of LlavaForConditionalGeneration does not keep"):
        removal_curve(LVLM(model, processor), picture(0), QUESTIONS[0], "red")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1, "rank_by": "saliency"}, "looks at the answer, so it cannot choose"),
        ({"keep": 1, "rank_by": "loudest"}, "ranking 'loudest' is unknown; there are"),
        ({"rank_by": "random"}, "keep=0 chooses nothing"),
        ({"keep": 99}, "keep=99, but the prompt has 16 image tokens"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"keep": -1}, "keep=-1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    vlm = LVLM(*tiny_llava(3, layers=3))
    with pytest.raises(InputError, match=message):
        removal_curve(vlm, picture(0), QUESTIONS[0], "red", **settings)


def test_a_prompt_without_an_answer_is_refused():
    vlm = LVLM(*tiny_llava(3, layers=3))
    with pytest.raises(InputError, match="prepare every prompt with one"):
        removal_curves(vlm, [vlm.prepare(picture(0), QUESTIONS[0])])


def curve_of(kl, layers=None, agrees=None):
    """A curve of one answer token."""
    kl = np.array(kl, dtype=np.float32)[:, None]
    agrees = kl == 0 if agrees is None else np.array(agrees)[:, None]
    return RemovalCurve(
        layers=tuple(range(len(kl))) if layers is None else layers,
        keep=Count(0),
        ranking=None,
        answer_tokens=("yes",),
        kl=kl,
        agrees=agrees,
        ends_alike=np.ones(len(kl), dtype=bool),
        logprob=-kl,
        untouched_logprob=np.zeros(1, dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("lost", "tolerance", "layer"),
    [
        ([3, 2, 1, 0], 1, 2),
        ([3, 0, 1.5, 0], 1, 3),  # back within at 1, but it does not stay within
        ([3, 2, 1, 1.1], 1, None),
        ([0, 0, 0, 0], 0, 0),
        ([3, np.nan, 0, 0], 1, 2),
    ],
)
def test_a_cliff_is_where_the_loss_comes_within_and_stays(lost, tolerance, layer):
    assert cliff_layer(lost, range(4), tolerance) == layer


def test_layers_that_do_not_start_at_0_keep_their_numbers():
    assert cliff(curve_of([3, 2, 0], layers=(1, 2, 3)), 1).layer == 3


def test_losses_are_what_they_are_called():
    curve = curve_of([3, 0.5, 0], agrees=[False, True, True])
    assert losses(curve, "kl").tolist() == [3, 0.5, 0]
    assert losses(curve, "answer").tolist() == [1, 0, 0]
    assert losses(curve, "first").tolist() == [1, 0, 0]
    assert losses(curve, "logprob").tolist() == [3, 0.5, 0]
    np.testing.assert_allclose(curve.redundancy, [0, 1 - 0.5 / 3, 1], rtol=1e-6)
    assert np.isnan(curve_of([0, 0]).redundancy).all()
    assert np.isnan(curve_of([3, 2], layers=(1, 2)).redundancy).all()
    with pytest.raises(InputError, match=f"there are {', '.join(LOSSES)}"):
        losses(curve, "speed")


def test_the_interval_holds_the_cliff_and_none_is_an_answer():
    late = [curve_of([1, 1, 1, 0.5])] * 4
    result = cliff(late, 0.1)
    assert (result.layer, result.low, result.high, result.without) == (None, None, None, 1.0)
    mixed = [curve_of([1, 0, 0, 0])] * 50 + [curve_of([1, 1, 0, 0])] * 6
    result = cliff(mixed, 0.1)
    assert result.samples == 56
    assert (result.layer, result.low, result.high) == (2, 1, 2)
    assert cliff(mixed, 0.1) == result


def test_bootstrap_intervals_cover_the_true_cliff():
    """Of data sets drawn from a known distribution, at least 95 in 100 intervals hold its cliff."""
    rng = np.random.default_rng(4)
    covered = []
    for trial in range(100):
        # True mean losses 1.0, 0.3, 0.12, 0.05, 0.01: within 0.2 from layer 2 on.
        drawn = rng.random((40, 5)) < np.array([1.0, 0.3, 0.12, 0.05, 0.01])
        curves = [curve_of([0] * 5, agrees=~row) for row in drawn]
        result = cliff(curves, 0.2, loss="answer", draws=200, seed=trial)
        covered.append(result.low <= 2 <= result.high if result.low is not None else False)
    assert sum(covered) >= 95


@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        ([], {}, "at least one"),
        ([curve_of([1, 0]), curve_of([1, 0, 0])], {}, "different layers"),
        ([curve_of([1, 0])], {"tolerance": -0.1}, "tolerance=-0.1"),
        ([curve_of([1, 0])], {"draws": 0}, "draws=0"),
    ],
)
def test_what_has_no_cliff_is_refused(curves, options, message):
    with pytest.raises(InputError, match=message):
        cliff(curves, **{"tolerance": 0.1, **options})
