"""Truncation agrees with the slow way, and with itself, in every setting it may meet."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, Fp8QuantizedLayer

from tests.support.slow_truncation import slow_logits
from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import InputError, ModelError
from vlmflow.truncation import Truncation
from vlmflow.truncation.cache import TruncatedLayer
from vlmflow.truncation.presets import PRESETS, preset
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.registry import RANKINGS
from vlmflow.truncation.remainder import fold

BY_CONTENT = tuple(
    name
    for name in RANKINGS.bundled()
    if name not in ("saliency", "llava_cam", "random", "uniform", "top_left")
)
QUESTIONS = (
    "What colour is the circle?",
    "Is there a blue square in the picture?",
    "Which number is printed on the green triangle? 1 2 3",
)


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((70, 60), Image.Resampling.BICUBIC)


def encode(processor, pictures, question):
    """One prompt; `pictures` are seeds."""
    text = "<s>USER: " + "<image>\n" * len(pictures) + question + " ASSISTANT:"
    return processor(
        text=[text], images=[[picture(seed) for seed in pictures]], return_tensors="pt"
    )


def batch_of(processor, prompts, side="left"):
    """Several encoded prompts in one padded batch."""
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    rows = {"input_ids": [], "attention_mask": []}
    for prompt in prompts:
        pad = longest - prompt["input_ids"].shape[1]
        widths = (pad, 0) if side == "left" else (0, pad)
        fill = processor.tokenizer.pad_token_id
        ids = torch.nn.functional.pad(prompt["input_ids"], widths, value=fill)
        rows["input_ids"].append(ids)
        rows["attention_mask"].append(torch.nn.functional.pad(prompt["attention_mask"], widths))
    batch = {name: torch.cat(parts) for name, parts in rows.items()}
    batch["pixel_values"] = torch.cat([prompt["pixel_values"] for prompt in prompts])
    return batch


def slow_policy(policy: Truncation, tokens: int) -> dict:
    return {
        "layers": [stage.layer for stage in policy.stages],
        "keeps": [stage.keep.of(tokens) for stage in policy.stages],
        "rank_by": policy.ranking.known_as(),
        "remainder": policy.remainder,
        "positions": policy.positions,
    }


def drawn_cases(count: int) -> list:
    """Models, prompts and policies, drawn with a fixed seed."""
    draw = random.Random(2406)
    cases = []
    for number in range(count):
        layers = draw.choice([3, 4, 5])
        heads, kv_heads = draw.choice([(4, 4), (4, 2), (4, 1), (2, 2)])
        stages = draw.choice([1, 1, 2])
        at = sorted(draw.sample(range(1, layers), stages))
        keeps = sorted((draw.choice([0, 1, 3, 7, 0.25, 0.5]) for _ in at), key=lambda k: -float(k))
        keeps = [float(keep) / 16 if any(isinstance(k, float) for k in keeps) and
                 isinstance(keep, int) else keep for keep in keeps]  # fmt: skip
        keeps = sorted(keeps, reverse=True)
        remainder = draw.choice(["drop", "drop", "merge", "average"])
        if remainder == "merge" and min(keeps) == 0:
            remainder = "average"
        policy = Truncation(
            layer=tuple(at),
            keep=tuple(keeps),
            rank_by=draw.choice(BY_CONTENT),
            remainder=remainder,
            positions=draw.choice(["keep", "repack"]),
        )
        cases.append(
            pytest.param(
                number, layers, heads, kv_heads, draw.choice([1, 2]),
                draw.choice(["eager", "sdpa"]), policy,
                id=f"{number}-{policy.ranking.known_as()}-{remainder}-{policy.positions}",
            )
        )  # fmt: skip
    return cases


@pytest.mark.parametrize(
    ("seed", "layers", "heads", "kv_heads", "pictures", "attention", "policy"), drawn_cases(120)
)
def test_agrees_with_the_slow_way(seed, layers, heads, kv_heads, pictures, attention, policy):
    """Logits of prompt and generated tokens, and which positions each layer of the cache holds."""
    model, processor = tiny_llava(
        seed, layers=layers, heads=heads, kv_heads=kv_heads, attn_implementation=attention
    )
    inputs = encode(processor, range(seed, seed + pictures), QUESTIONS[seed % 3])
    prompt = inputs["input_ids"].shape[1]
    with policy(model):
        output = model.generate(
            **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[model.config.image_token_id],
        )  # fmt: skip
    ids = output.sequences[0]
    token = model.config.image_token_id
    slow = slow_policy(policy, int((inputs["input_ids"] == token).sum()))
    logits, seen = slow_logits(
        model, ids[:-1], inputs["pixel_values"], prompt, slow, token
    )  # fmt: skip
    fast = torch.cat(output.logits)
    torch.testing.assert_close(fast, logits[prompt - 1 :], rtol=1e-4, atol=2e-5)
    for layer, held in zip(output.past_key_values.layers, seen, strict=True):
        assert layer.keys.shape[-2] == len(held)
        if isinstance(layer, TruncatedLayer):
            assert layer.positions[0].tolist() == held


ALL = tuple(RANKINGS.bundled())
HARDEST = ("last_attention", "diversity", "random", "uniform")


def untouched(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options).logits


@pytest.mark.parametrize("ranking", ALL)
@pytest.mark.parametrize("positions", ["keep", "repack"])
def test_keeping_all_changes_nothing(ranking, positions):
    """Through the whole gathering path, for every ranking."""
    model, processor = tiny_llava(1, kv_heads=2)
    inputs = batch_of(
        processor, [encode(processor, [1], QUESTIONS[0]), encode(processor, [2, 3], QUESTIONS[1])]
    )
    options = {"max_new_tokens": 6, "do_sample": False}
    expected, plain = untouched(model, inputs), model.generate(**inputs, **options)
    with Truncation(2, 1.0, ranking, positions=positions)(model):
        logits, tokens = untouched(model, inputs), model.generate(**inputs, **options)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)
    assert torch.equal(tokens, plain)


@pytest.mark.parametrize("name", list(PRESETS))
def test_keeping_all_under_every_preset_changes_nothing(name):
    model, processor = tiny_llava(2, layers=8)
    inputs = encode(processor, [1], QUESTIONS[0])
    policy = preset(name, 8)
    keep = tuple(1.0 for _ in policy.stages)
    if policy == preset("no-image", 8):  # it never ranks, and attention cannot at layer 0
        policy = replace(policy, rank_by="diversity")
    expected = untouched(model, inputs)
    with replace(policy, keep=keep)(model):
        torch.testing.assert_close(untouched(model, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("side", "ranking"),
    [
        *itertools.product(("left", "right"), (*HARDEST, "text_attention")),
        *itertools.product(("left",), ("saliency", "llava_cam")),  # right: refused, see below
    ],
)
def test_a_batch_is_its_rows(ranking, side, attention):
    """Different lengths, picture counts and kept counts; logits of every real token."""
    model, processor = tiny_llava(3, layers=5, kv_heads=2, attn_implementation=attention)
    prompts = [
        encode(processor, [1], QUESTIONS[0]),
        encode(processor, [2, 3], QUESTIONS[1]),
        encode(processor, [4], QUESTIONS[2]),
    ]
    policy = Truncation((1, 3), (0.5, 0.2), ranking)
    inputs = batch_of(processor, prompts, side)
    if side == "left":  # as generate does
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with policy(model):
        together = untouched(model, inputs)
        for row, prompt in enumerate(prompts):
            alone = untouched(model, prompt)[0]
            real = inputs["attention_mask"][row].bool()
            torch.testing.assert_close(together[row, real], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("positions", ["keep", "repack"])
def test_a_batch_generates_what_its_rows_do(beams, positions):
    model, processor = tiny_llava(4, layers=5)
    prompts = [encode(processor, range(n), q) for n, q in zip((1, 2, 1), QUESTIONS, strict=True)]
    inputs = batch_of(processor, prompts)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams,
               "suppress_tokens": [model.config.image_token_id]}  # fmt: skip
    with Truncation((2, 3), (0.5, 0.25), positions=positions)(model):
        together = model.generate(**inputs, **options)[:, -6:]
        alone = [model.generate(**prompt, **options)[0, -6:] for prompt in prompts]
    assert together.tolist() == [row.tolist() for row in alone]


@pytest.mark.parametrize("beams", [1, 3])
def test_cache_and_no_cache_agree(beams):
    """Greedy and beam search with keep 0: what the cache holds is what a whole pass would see."""
    model, processor = tiny_llava(5)
    inputs = encode(processor, [1, 2], QUESTIONS[0])
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams,
               "suppress_tokens": [model.config.image_token_id]}  # fmt: skip
    with Truncation(2, 0)(model):
        cached = model.generate(**inputs, **options)
        uncached = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)


def test_sampling_draws_the_same_with_and_without_cache():
    model, processor = tiny_llava(6)
    inputs = encode(processor, [1], QUESTIONS[0])
    drawn = []
    with Truncation(2, 0)(model):
        for use_cache in (True, False):
            torch.manual_seed(0)
            drawn.append(
                model.generate(
                    **inputs, max_new_tokens=8, do_sample=True, num_return_sequences=3,
                    use_cache=use_cache, suppress_tokens=[model.config.image_token_id],
                )
            )  # fmt: skip
    assert torch.equal(*drawn)


@pytest.mark.parametrize("second", [[], [7]], ids=["text", "picture"])
@pytest.mark.parametrize("positions", ["keep", "repack"])
def test_a_second_turn_on_the_same_cache(second, positions):
    """New text, or a new picture: as if the conversation had been one prompt."""
    model, processor = tiny_llava(7, layers=5)
    token = model.config.image_token_id
    first = encode(processor, [5], QUESTIONS[0])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False,
               "return_dict_in_generate": True, "output_logits": True,
               "suppress_tokens": [token]}  # fmt: skip
    policy = Truncation(2, 0, positions=positions)
    turn = encode(processor, second, QUESTIONS[1]) if second else processor(
        text=[" USER: " + QUESTIONS[1] + " ASSISTANT:"], return_tensors="pt"
    )  # fmt: skip
    with policy(model):
        answer = model.generate(**first, **options)
        ids = torch.cat([answer.sequences, turn["input_ids"]], dim=1)
        new = {"pixel_values": turn["pixel_values"]} if second else {}
        two = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **new,
            past_key_values=answer.past_key_values, **options,
        )  # fmt: skip
    sequence = two.sequences[0, :-1]
    pixels = torch.cat([first["pixel_values"], *new.values()])
    slow = {"layers": [2], "keeps": [0], "rank_by": "", "remainder": "drop", "positions": positions}
    expected, seen = slow_logits(model, sequence, pixels, len(sequence), slow, token)
    torch.testing.assert_close(
        torch.cat(two.logits), expected[ids.shape[1] - 1 :], rtol=1e-4, atol=2e-5
    )
    for layer, held in zip(two.past_key_values.layers, seen, strict=True):
        assert layer.keys.shape[-2] == len(held)
        assert layer.get_seq_length() == len(sequence)


def test_a_cache_from_before_the_block_goes_on():
    """The first turn untouched, the second one truncated."""
    model, processor = tiny_llava(8)
    first = encode(processor, [5], QUESTIONS[0])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False,
               "return_dict_in_generate": True,
               "suppress_tokens": [model.config.image_token_id]}  # fmt: skip
    answer = model.generate(**first, **options)
    turn = encode(processor, [6], QUESTIONS[1])
    ids = torch.cat([answer.sequences, turn["input_ids"]], dim=1)
    with Truncation(2, 5)(model):
        two = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=turn["pixel_values"],
            past_key_values=answer.past_key_values, **options,
        )  # fmt: skip
    held = [layer.keys.shape[-2] for layer in two.past_key_values.layers]
    length = two.sequences.shape[1] - 1
    assert held == [length, length, length - 11, length - 11]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keep", [0, 3])
def test_a_sliding_window_slides_over_positions(keep, attention):
    model, processor = tiny_llava(
        9, text_model="mistral", text_config={"sliding_window": 12}, attn_implementation=attention
    )
    inputs = encode(processor, [1], QUESTIONS[2])
    prompt = inputs["input_ids"].shape[1]
    token = model.config.image_token_id
    policy = Truncation(2, keep, "value_norm")
    with policy(model):
        output = model.generate(
            **inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, output_logits=True,
            return_dict_in_generate=True, suppress_tokens=[token],
        )  # fmt: skip
    expected, _ = slow_logits(
        model, output.sequences[0, :-1], inputs["pixel_values"], prompt,
        slow_policy(policy, 16), token, window=12,
    )  # fmt: skip
    torch.testing.assert_close(
        torch.cat(output.logits), expected[prompt - 1 :], rtol=1e-4, atol=2e-5
    )
    assert output.past_key_values.layers[3].keys.shape[-2] <= 12


def test_a_prompt_without_pictures_is_not_touched():
    model, processor = tiny_llava(10)
    inputs = processor(text=["USER: yes or no? ASSISTANT:"], return_tensors="pt")
    expected = untouched(model, inputs)
    with Truncation((0, 2), (0.5, 0), "diversity")(model):
        assert torch.equal(untouched(model, inputs), expected)
        output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    assert not any(isinstance(layer, TruncatedLayer) for layer in output.past_key_values.layers)


@pytest.mark.parametrize("ranking", ["last_attention", "random", "saliency"])
def test_the_model_is_left_as_found(ranking):
    """Also after an exception in the block, and inside a call."""
    model, processor = tiny_llava(11)
    inputs = encode(processor, [1], QUESTIONS[0])
    broken = {**inputs, "pixel_values": inputs["pixel_values"][:, :, :28]}

    def state():
        hooks = [
            (name, len(m._forward_pre_hooks), len(m._forward_hooks), sorted(m.__dict__))
            for name, m in model.named_modules()
        ]
        text = model.config.get_text_config()
        return hooks, text._attn_implementation, model.config.to_dict(), model.training

    expected = untouched(model, inputs)
    before = state()
    with Truncation(2, 3, ranking)(model):
        assert state() != before
        untouched(model, inputs)
    assert state() == before
    with pytest.raises(ZeroDivisionError), Truncation(2, 3, ranking)(model):
        raise ZeroDivisionError
    assert state() == before
    with Truncation(2, 3, ranking)(model):
        with pytest.raises((ValueError, RuntimeError)):
            untouched(model, broken)
        untouched(model, inputs)
    assert state() == before
    assert torch.equal(untouched(model, inputs), expected)


@pytest.mark.parametrize("remainder", ["drop", "merge"])
def test_gradients_with_and_without_checkpointing(remainder):
    """Training through a truncation: the recomputed layers see what they saw."""
    model, processor = tiny_llava(12, layers=5)
    inputs = batch_of(
        processor, [encode(processor, [1], QUESTIONS[0]), encode(processor, [2, 3], QUESTIONS[1])]
    )
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with Truncation((1, 3), (0.5, 0.25), remainder=remainder)(model):
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Keep-all is the untouched model up to rounding; fewer tokens run and stay finite."""
    model, processor = tiny_llava(13, dtype=dtype)
    inputs = encode(processor, [1], QUESTIONS[0]).to(dtype=dtype)
    expected = untouched(model, inputs)
    with Truncation(2, 1.0)(model):
        torch.testing.assert_close(untouched(model, inputs), expected, rtol=0.05, atol=0.05)
    for remainder in ("drop", "merge", "average"):
        with Truncation(2, 4, remainder=remainder)(model):
            assert untouched(model, inputs)[:, -1].isfinite().all()


def test_caches_that_can_neither_grow_nor_be_cut_are_refused():
    """Of layers like those of quantised caches, for which no library is installed here."""

    class Packed(DynamicLayer):
        pass

    model, processor = tiny_llava(14)
    inputs = encode(processor, [1], QUESTIONS[0])
    cache = DynamicCache(config=model.config.get_text_config())
    cache.layers = [Packed() for _ in cache.layers]
    with (
        Truncation(2, 0)(model),
        pytest.raises(InputError, match=r"DynamicCache of Packeds .* transformers' DynamicCache"),
    ):
        model.generate(**inputs, max_new_tokens=2, past_key_values=cache)


def test_a_cache_that_grows_layer_by_layer():
    """A DynamicCache made without a config has no layers before they are needed."""
    model, processor = tiny_llava(15)
    inputs = encode(processor, [1], QUESTIONS[0])
    with Truncation(2, 0)(model), torch.no_grad():
        cache = model(**inputs, past_key_values=DynamicCache()).past_key_values
    held = [layer.keys.shape[-2] for layer in cache.layers]
    length = inputs["input_ids"].shape[1]
    assert held == [length, length, length - 16, length - 16]


def test_a_truncated_cache_layer_is_cropped_and_reordered_with_its_positions():
    layer = TruncatedLayer(DynamicLayer(), 0)
    keys = torch.arange(2 * 3.0).view(2, 1, 3, 1)
    layer.expect(torch.tensor([[0, 4, 5], [-1, 0, 5]]), 6, ragged=True)
    layer.update(keys, keys)
    layer.expect(torch.tensor([[6], [6]]), 1, ragged=False)
    layer.update(keys[:, :, :1], keys[:, :, :1])
    assert (layer.get_seq_length(), layer.get_mask_sizes(2)) == (7, (9, 0))
    layer.reorder_cache(torch.tensor([1, 0]))
    assert layer.positions.tolist() == [[-1, 0, 5, 6], [0, 4, 5, 6]]
    assert layer.keys[:, 0, :, 0].tolist() == [[3, 4, 5, 3], [0, 1, 2, 0]]
    layer.crop(-1)
    assert layer.positions.tolist() == [[-1, 0, 5], [0, 4, 5]]
    assert (layer.get_seq_length(), layer.keys.shape[-2]) == (6, 3)
    layer.batch_select_indices(torch.tensor([1]))
    layer.batch_repeat_interleave(2)
    assert layer.positions.tolist() == [[0, 4, 5], [0, 4, 5]]
    with pytest.raises(ModelError, match="layer 0 of this cache lacks tokens that a truncation"):
        layer.update(keys[:, :, :1], keys[:, :, :1])  # outside of a truncation
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.positions is None


def test_cropping_removes_positions_and_not_keys():
    """Of the last three of six tokens one row holds two keys, the other none."""
    layer = TruncatedLayer(DynamicLayer(), 0)
    keys = torch.arange(2 * 3.0).view(2, 1, 3, 1).expand(-1, 2, -1, 4)
    layer.expect(torch.tensor([[0, 3, 5], [0, 1, 2]]), 6, ragged=False)
    layer.update(keys, keys)
    layer.crop(-3)
    assert layer.positions.tolist() == [[-1, -1, 0], [0, 1, 2]]
    assert layer.keys[1, 0, :, 0].tolist() == [3, 4, 5]
    assert layer.values[0, 1, -1].tolist() == [0, 0, 0, 0]
    assert (layer.get_seq_length(), layer.ragged) == (3, True)
    with pytest.raises(ValueError, match="positive value"):
        layer.crop(2)


def kept_positions(model, inputs, policy):
    with policy(model), torch.no_grad():
        cache = model(**inputs, past_key_values=DynamicCache()).past_key_values
    held = cache.layers[-1].positions
    token = model.config.image_token_id
    return [
        [p for p in row.tolist() if p >= 0 and ids[p] == token]
        for row, ids in zip(held, inputs["input_ids"], strict=True)
    ]


@pytest.mark.parametrize("signal", ["saliency", "llava_cam"])
def test_oracles_keep_what_explain_finds(signal):
    model, processor = tiny_llava(16, layers=5)
    vlm = LVLM(model, processor)
    prompt = vlm.prepare(picture(3), QUESTIONS[0])
    (kept,) = kept_positions(model, prompt.inputs, Truncation(3, 5, signal))
    first = untouched(model, prompt.inputs)[0, -1].argmax().item()
    flow = vlm.explain(picture(3), QUESTIONS[0], [first], signals=(signal,), per_token=False)
    maps = flow.maps[signal][:, 0]
    scores = maps[:3].sum(0) if signal == "saliency" else maps[2]
    best = np.sort(prompt.layout.image_positions[np.argsort(-scores, kind="stable")[:5]])
    assert kept == best.tolist()


def test_oracles_refuse_right_padding():
    model, processor = tiny_llava(17)
    prompts = [encode(processor, [1], QUESTIONS[0]), encode(processor, [1], QUESTIONS[2])]
    inputs = batch_of(processor, prompts, "right")
    with Truncation(2, 3, "saliency")(model), pytest.raises(InputError, match="pad on the left"):
        untouched(model, inputs)


def test_random_choices_follow_the_seed_and_the_prompt():
    model, processor = tiny_llava(18)
    prompts = [encode(processor, [1], question) for question in QUESTIONS]
    drawn = {
        seed: [
            kept_positions(model, inputs, Truncation(1, 6, Random(seed)))[0] for inputs in prompts
        ]
        for seed in range(8)
    }
    again = kept_positions(model, prompts[0], Truncation(1, 6, Random(3)))[0]
    assert again == drawn[3][0]
    assert len({tuple(rows[0]) for rows in drawn.values()}) > 4
    assert len({tuple(row) for row in drawn[0]}) == 3
    counts = Counter(p for rows in drawn.values() for row in rows for p in row)
    assert len(counts) == 16  # 24 draws of 6 out of 16 leave none out


@pytest.mark.parametrize("keep", [1, 4, 9, 16])
def test_uniform_choices_spread_over_every_picture(keep):
    model, processor = tiny_llava(19, image_size=84)  # 6 x 6 tokens
    inputs = encode(processor, [1, 2], QUESTIONS[0])
    (kept,) = kept_positions(model, inputs, Truncation(1, 2 * keep, "uniform"))
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    places = [divmod(image.index(p), 36) for p in kept]
    for number in (0, 1):
        cells = [divmod(place, 6) for which, place in places if which == number]
        assert abs(len(cells) - keep) <= 2  # equal distances go to the first picture
        quadrants = Counter((row // 3, col // 3) for row, col in cells)
        if keep >= 4:
            assert len(quadrants) == 4
            assert max(quadrants.values()) <= keep / 2


def test_places_are_known_while_generating():
    """``generate`` encodes pictures itself, so that the model's forward never sees the pixels."""
    model, processor = tiny_llava(19, image_size=84)
    inputs = encode(processor, [1], QUESTIONS[0])
    with Truncation(1, 4, "uniform")(model):
        generated = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
        positions = generated.past_key_values.layers[1].positions[0].tolist()
    (direct,) = kept_positions(model, inputs, Truncation(1, 4, "uniform"))
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    assert [p for p in positions if p in image] == list(direct)


@pytest.mark.parametrize(("keep", "side"), [(1, 1), (4, 2), (25, 5)])
def test_top_left_keeps_a_corner_of_every_picture(keep, side):
    model, processor = tiny_llava(19, image_size=84)  # 6 x 6 tokens
    inputs = encode(processor, [1, 2], QUESTIONS[0])
    (kept,) = kept_positions(model, inputs, Truncation(0, 2 * keep, "top_left"))
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    cells = {divmod(image.index(p), 6) for p in kept}
    corner = {(row, col) for row in range(side) for col in range(side)}
    assert cells == corner | {(row + 6, col) for row, col in corner}


def test_merged_tokens_stand_for_what_they_took_in():
    """A worked example: sizes weigh, the mean stays the mean."""
    hidden = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 3.0]])
    sizes = torch.tensor([1.0, 3.0, 1.0, 1.0])
    kept, removed = torch.tensor([0, 2]), torch.tensor([1, 3])
    merged, total = fold(hidden, sizes, kept, removed, "merge")
    torch.testing.assert_close(merged[0], torch.tensor([(1 + 2.7) / 4, 0.3 / 4]))
    torch.testing.assert_close(merged[2], torch.tensor([0.0, 2.0]))
    assert total.tolist() == [4, 3, 2, 1]
    averaged, total = fold(hidden, sizes, kept, removed, "average")
    torch.testing.assert_close(averaged[3], torch.tensor([2.7 / 4, (0.3 + 3) / 4]))
    assert total.tolist() == [1, 3, 1, 4]
    assert torch.equal(averaged[:3], hidden[:3])


def test_flex_attention_agrees_with_sdpa():
    if shutil.which("g++") is None:
        pytest.skip("flex attention on a CPU is compiled, and there is no C++ compiler")
    logits = []
    for attention in ("sdpa", "flex_attention"):
        model, processor = tiny_llava(20, attn_implementation=attention, hidden=64)
        prompts = [encode(processor, [1], QUESTIONS[0]), encode(processor, [2, 3], QUESTIONS[1])]
        inputs = batch_of(processor, prompts)
        with Truncation(2, 0.4, "diversity")(model):
            logits.append(untouched(model, inputs)[:, -1])
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": -1, "keep": 0}, "layer=-1 is not a layer"),
        ({"layer": 1.5, "keep": 0}, "layer=1.5 is not a layer"),
        ({"layer": 1, "keep": -1}, "keep=-1"),
        ({"layer": 1, "keep": 1.5}, "a fraction lies between"),
        ({"layer": 1, "keep": float("nan")}, "keep=nan"),
        ({"layer": (1, 2), "keep": 0}, "one keep per layer"),
        ({"layer": (2, 1), "keep": (5, 3)}, "must increase"),
        ({"layer": (1, 2), "keep": (3, 5)}, "must not grow"),
        ({"layer": 1, "keep": 0, "rank_by": "fastest"}, "ranking 'fastest' is unknown; there are"),
        ({"layer": 1, "keep": 0, "remainder": "burn"}, "there are drop, merge, average"),
        ({"layer": 1, "keep": 0, "positions": "new"}, "there are keep, repack"),
        ({"layer": 1, "keep": 0, "remainder": "merge"}, "leaves no image token to merge into"),
        ({"layer": 0, "keep": 4}, "layer=0 has none"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Truncation(**settings)


def test_what_a_model_does_not_have_is_refused():
    model, processor = tiny_llava(21)
    inputs = encode(processor, [1], QUESTIONS[0])
    with pytest.raises(InputError, match=r"layer=4, but .* has 4 decoder layers \(0..3\)"):
        Truncation(4, 0)(model).__enter__()
    with Truncation(2, 17)(model), pytest.raises(InputError, match=r"keep=17, but .* 16 image"):
        untouched(model, inputs)
    with Truncation(2, 0)(model):
        with pytest.raises(InputError, match="truncated already"):
            Truncation(1, 0)(model).__enter__()
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(InputError, match="pass input_ids"):
            model(inputs_embeds=embeds)


def test_models_that_look_through_cross_attention_are_refused():
    config = MllamaConfig(
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1,
                       "attention_heads": 2, "intermediate_size": 16, "vision_output_dim": 32,
                       "image_size": 28, "patch_size": 14, "intermediate_layers_indices": [0],
                       "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1},
        text_config={"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 2, "intermediate_size": 16, "vocab_size": 64,
                     "cross_attention_layers": [1], "pad_token_id": 0, "bos_token_id": 1,
                     "eos_token_id": 2},
    )  # fmt: skip
    model = MllamaForConditionalGeneration(config)
    with pytest.raises(ModelError, match="cross-attention layers"):
        Truncation(1, 0)(model).__enter__()


@pytest.mark.parametrize(
    "policy",
    [
        Truncation(3, 0),
        Truncation((2, 5), (0.5, 8), Random(7), "merge", "repack"),
        *(preset(name, 32) for name in PRESETS),
    ],
)
def test_policies_go_through_json(policy):
    assert Truncation.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_json_with_something_else_is_refused():
    with pytest.raises(InputError, match="no setting 'layers'"):
        Truncation.from_json({"layers": 3, "keep": 0})
    with pytest.raises(InputError, match="needs keep"):
        Truncation.from_json({"layer": 3})


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("layer=6,keep=0", Truncation(6, 0)),
        ("layer=2:8, keep=0.5:16, rank_by=diversity", Truncation((2, 8), (0.5, 16), "diversity")),
        (
            "layer=1,keep=1.0,rank_by=random,seed=3,remainder=average",
            Truncation(1, 1.0, Random(3), remainder="average"),
        ),
    ],
)
def test_policies_are_read_from_one_line(text, policy):
    assert Truncation.parse(text) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer", "'layer' in 'layer' is not a setting"),
        ("layer=x,keep=0", "layer='x' is not a number"),
        ("layer=1,layer=2,keep=0", "stands twice"),
        ("layer=1,keep=0,depth=3", "no setting 'depth'"),
        ("layer=1.5,keep=0", "layer=1.5 is not a layer"),
        ("layer=1,keep=2,rank_by=random,seed=-2", "seed=-2"),
        ("layer=1,keep=2,rank_by=random,seed=often", "seed='often'; give an integer from 0"),
        ("layer=1,keep=2,seed=3", "a truncation by 'last_attention' has no setting 'seed'"),
    ],
)
def test_a_line_that_is_not_a_policy_is_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Truncation.parse(text)


def test_presets_say_what_they_say():
    assert preset("fastv", 32) == Truncation(2, 0.5, "last_attention")
    assert preset("cliff", 32) == Truncation(22, 0)
    assert preset("pyramiddrop", 32) == Truncation(
        (8, 16, 24), (0.5, 0.25, 0.125), "last_attention", positions="repack"
    )
    assert preset("sparsevlm", 12).layer == (1, 2, 6)
    with pytest.raises(InputError, match="unknown preset 'fastvee'; there are cliff, fastv"):
        preset("fastvee", 32)
    with pytest.raises(InputError, match="does not fit a model of 2 layers"):
        preset("pyramiddrop", 2)


def test_layers_on_several_devices(tmp_path):
    """accelerate moves each layer's arguments; some weights stay on the disk until needed."""
    model, processor = tiny_llava(22, layers=5)
    inputs = encode(processor, [1], QUESTIONS[0])
    model.save_pretrained(tmp_path / "model")
    places = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.rotary_emb": "cpu",
        "model.language_model.norm": "disk",
        "lm_head": "disk",
    }
    places |= {f"model.language_model.layers.{n}": ("disk", "cpu")[n % 2] for n in range(5)}
    spread = type(model).from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    for policy in (
        Truncation((1, 3), (0.5, 0.2)),
        Truncation(2, 0.3, "diversity", remainder="merge", positions="repack"),
    ):
        answers = []
        for placed in (model, spread.eval()):
            with policy(placed):
                answers.append(placed.generate(**inputs, max_new_tokens=5, do_sample=False))
        assert torch.equal(*answers)


def test_quantised_caches_are_refused():
    model, processor = tiny_llava(23)
    inputs = encode(processor, [1], QUESTIONS[0])
    cache = Cache(layers=[Fp8QuantizedLayer() for _ in range(4)])
    with (
        Truncation(2, 0)(model),
        pytest.raises(InputError, match="Fp8QuantizedLayers cannot hold layers of different"),
    ):
        untouched(model, inputs, past_key_values=cache)
