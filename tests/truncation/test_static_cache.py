"""Truncation with static caches: the answers of growing ones, decoding compiled or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from tests.support.families import FAMILIES, TinyFamily, picture
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, ExitPolicy, Truncation
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.truncation.static_cache import BUCKET, TruncatedStaticLayer

QUESTIONS = ("What is it?", "Is there a ring next to the box, or is there none at all?")
STEPS = 6


def plain(family: TinyFamily) -> bool:
    """Whether every layer holds all keys: transformers' static caches have other layers, too."""
    text = family.build("sdpa")[0].config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(text, "sliding_window", None)


PLAIN = [family for family in FAMILIES if plain(family) and not family.queries]


def inputs_of(vlm: LVLM, questions: tuple[str, ...] = QUESTIONS[:1]) -> dict[str, Any]:
    prompts = [
        vlm.prepare(picture(60 + place, (40, 30)), question)
        for place, question in enumerate(questions)
    ]
    return collate(prompts, pad_id(vlm.processor.tokenizer))[0]


def generated(vlm: LVLM, inputs: dict[str, Any], policy: Any, **options: Any) -> Any:
    with policy(vlm.model) as run:
        output = vlm.model.generate(
            **inputs, do_sample=False, max_new_tokens=STEPS, return_dict_in_generate=True,
            output_logits=True, **options,
        )  # fmt: skip
    return output.sequences, torch.stack(output.logits), output.past_key_values, run


def compare(vlm: LVLM, inputs: dict[str, Any], policy: Any, **options: Any) -> Any:
    """Hold a static cache against a growing one; returns the static one."""
    ids, logits, cache, run = generated(
        vlm, inputs, policy, cache_implementation="static", **options
    )
    expected_ids, expected, _, growing = generated(vlm, inputs, policy)
    assert torch.equal(ids, expected_ids)
    # Float32: the order of sums differs with the number of slots.
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert run.tokens_per_layer.tolist() == growing.tokens_per_layer.tolist()
    assert run.exit_layers.tolist() == growing.exit_layers.tolist()
    return cache


@pytest.fixture(scope="module")
def vlm() -> LVLM:
    model, processor = tiny_llava(5, layers=4)
    model.generation_config.eos_token_id = None
    return LVLM(model, processor)


POLICIES = (
    Truncation(0, 0),
    Truncation(2, 3),
    Truncation((1, 3), (0.5, 0)),
    Truncation(1, 0.5, "diversity", remainder="merge"),
)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_logits_are_those_of_a_growing_cache(vlm: LVLM, policy: Truncation):
    cache = compare(vlm, inputs_of(vlm), policy)
    first = policy.stages[0].layer
    kinds = [isinstance(layer, TruncatedStaticLayer) for layer in cache.layers]
    assert kinds == [False] * first + [True] * (4 - first)


def test_padded_batches_and_rows_that_keep_different_numbers(vlm: LVLM):
    inputs = inputs_of(vlm, QUESTIONS)
    compare(vlm, inputs, Truncation(1, 0.5))
    # The seed of random tokens is the prompt without its padding.
    compare(vlm, inputs, Truncation(1, 0.5, "random"))
    # One row leaves at a layer and the other does not: rows of different lengths in one layer.
    for threshold in torch.linspace(-1, 1, 9).tolist():
        policy = ExitPolicy((1, 2), (0, 0), signal="hidden_step", thresholds=(threshold,) * 2)
        compare(vlm, inputs, policy)


def test_beams(vlm: LVLM):
    inputs = inputs_of(vlm, QUESTIONS)
    answers = []
    for implementation in ("static", "dynamic"):
        with Truncation(2, 2)(vlm.model):
            answers.append(
                vlm.model.generate(
                    **inputs, num_beams=3, do_sample=False, max_new_tokens=STEPS,
                    cache_implementation=implementation,
                )
            )  # fmt: skip
    assert torch.equal(*answers)


@pytest.mark.parametrize("family", PLAIN, ids=lambda family: family.name)
def test_all_families_whose_layers_hold_all_keys(family: TinyFamily):
    model, processor = family.build("sdpa")
    model.generation_config.eos_token_id = None
    vlm = LVLM(model, processor)
    compare(vlm, inputs_of(vlm), Truncation(1, 2))


def test_a_truncated_layer_is_smaller_by_what_was_removed():
    model, processor = tiny_llava(5, layers=4)
    vlm = LVLM(model, processor)
    inputs = inputs_of(vlm)
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + 500)
    with Truncation(2, 0)(model):
        model(**inputs, past_key_values=cache)
    image = int((inputs["input_ids"] == model.config.image_token_id).sum())
    whole, cut = cache.layers[0].keys.shape[2], cache.layers[3].keys.shape[2]
    assert whole == length + 500
    assert cut % BUCKET == 0
    assert 0 <= cut - (whole - image) < BUCKET


class Counted:
    """A backend that counts the graphs that are compiled, and runs them as they are."""

    graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        type(self).graphs += 1
        return graph.forward


@pytest.fixture
def compiling():
    torch._dynamo.reset()
    Counted.graphs = 0
    config = CompileConfig(backend=Counted(), mode=None, fullgraph=True)
    config._compile_all_devices = True
    yield config
    torch._dynamo.reset()


def test_decoding_is_compiled_as_a_whole_and_once(compiling):
    model, processor = tiny_llava(5, layers=2)
    model.generation_config.eos_token_id = None
    vlm = LVLM(model, processor)
    # The longest prompt first: transformers makes no smaller cache after a large one.
    long, short = inputs_of(vlm, QUESTIONS[1:]), inputs_of(vlm)
    options = {"compile_config": compiling}
    settings = {"do_sample": False, "max_new_tokens": STEPS, "cache_implementation": "static"}
    untouched = model.generate(**long, **settings, **options)
    assert Counted.graphs == 1
    # Compiled before the truncation, without its hooks: they have to count all the same.
    cache = compare(vlm, long, Truncation(1, 0), **options)
    assert isinstance(cache.layers[1], TruncatedStaticLayer)
    assert Counted.graphs == 2
    # Other prompts of about this size, and other amounts, share the graph.
    compare(vlm, short, Truncation(1, 1), **options)
    compare(vlm, short, Truncation(1, 2, "uniform"), **options)
    assert Counted.graphs == 2
    assert torch.equal(model.generate(**long, **settings, **options), untouched)
    assert Counted.graphs == 2


def test_what_a_static_cache_cannot_is_refused_in_one_sentence(vlm: LVLM):
    inputs = inputs_of(vlm)
    with pytest.raises(InputError, match="positions='repack' counts tokens anew"):
        generated(vlm, inputs, Truncation(1, 2, positions="repack"), cache_implementation="static")
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=vlm.model.config.get_text_config(), max_cache_len=length + 9)
    one = torch.ones(1, 1, dtype=torch.int64)
    with Truncation(1, 2)(vlm.model):
        vlm.model(**inputs, past_key_values=cache)
        vlm.model(input_ids=one, past_key_values=cache)
        with pytest.raises(InputError, match="takes one new token at a time"):
            vlm.model(input_ids=one.expand(1, 2), past_key_values=cache)
    with pytest.raises(ModelError, match="lacks tokens that a truncation removed"):
        vlm.model(input_ids=one, past_key_values=cache)
    with pytest.raises(InputError, match="make a new one"):
        cache.reset()


def test_sliding_windows_need_a_growing_cache():
    family = next(family for family in FAMILIES if family.model_type == "gemma3")
    vlm = LVLM(*family.build("sdpa"))
    with pytest.raises(InputError, match="where no layer slides a window, a StaticCache"):
        generated(vlm, inputs_of(vlm), Truncation(0, 0), cache_implementation="static")


@pytest.mark.parametrize("name", ["llava", "lfm2_vl", "qwen3_5"])
def test_padding_is_known_whatever_mask_the_model_is_given(name: str):
    family = next(family for family in FAMILIES if family.model_type == name)
    model, processor = family.build("sdpa")
    model.generation_config.eos_token_id = None
    vlm = LVLM(model, processor)
    inputs = inputs_of(vlm, QUESTIONS)
    for steps in (1, 3):
        kept = []
        for implementation in ("static", "dynamic"):
            with Truncation(1, 2, "random")(model) as run:
                model.generate(
                    **inputs, do_sample=False, max_new_tokens=steps,
                    cache_implementation=implementation,
                )  # fmt: skip
            kept.append([[p.tolist() for p in run.positions_per_layer(row)] for row in (0, 1)])
        assert kept[0] == kept[1]


def test_no_key_is_put_where_no_query_sees_it(vlm: LVLM):
    inputs = inputs_of(vlm)
    length = inputs["input_ids"].shape[1]
    config = vlm.model.config.get_text_config()
    one = torch.ones(1, 1, dtype=torch.int64)
    with Truncation(0, 0)(vlm.model):
        cache = StaticCache(config=config, max_cache_len=length + 2)
        vlm.model(**inputs, past_key_values=cache)
        for _ in range(2):
            vlm.model(input_ids=one, past_key_values=cache)
        with pytest.raises((IndexError, RuntimeError, ModelError)):
            vlm.model(input_ids=one, past_key_values=cache)
        small = StaticCache(config=config, max_cache_len=length - 1)
        with pytest.raises(InputError, match="the static cache was made for"):
            vlm.model(**inputs, past_key_values=small)


def test_another_block_that_begins_later_goes_on(vlm: LVLM):
    inputs = inputs_of(vlm)
    config = vlm.model.config.get_text_config()
    one = torch.ones(1, 1, dtype=torch.int64)
    logits = []
    for cache in (StaticCache(config=config, max_cache_len=99), DynamicCache(config=config)):
        with Truncation(1, 2)(vlm.model):
            vlm.model(**inputs, past_key_values=cache)
        with Truncation(3, 2)(vlm.model):
            logits.append(vlm.model(input_ids=one, past_key_values=cache).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_a_refused_turn_leaves_the_cache_as_it_was(vlm: LVLM):
    inputs = inputs_of(vlm)
    cache = StaticCache(config=vlm.model.config.get_text_config(), max_cache_len=99)
    vlm.model(**inputs, past_key_values=cache)
    held = [int(layer.get_seq_length()) for layer in cache.layers]
    for policy in (Truncation(1, 2), Truncation(1, 2, "saliency")):
        with policy(vlm.model), pytest.raises(InputError):
            vlm.model(**inputs, past_key_values=cache)
    assert [int(layer.get_seq_length()) for layer in cache.layers] == held
    with (
        Truncation(1, 2, "saliency")(vlm.model),
        pytest.raises(InputError, match="which the masks of a static one do not fit"),
    ):
        vlm.model(**inputs, past_key_values=StaticCache(
            config=vlm.model.config.get_text_config(), max_cache_len=99
        ))  # fmt: skip


def test_a_prompt_without_pictures_is_compiled_as_ever(compiling):
    model, _ = tiny_llava(5, layers=2)
    model.generation_config.eos_token_id = None
    text = torch.arange(10, 22)[None]
    settings = {"do_sample": False, "max_new_tokens": STEPS, "cache_implementation": "static"}
    untouched = model.generate(text, **settings, compile_config=compiling)
    with Truncation(1, 2)(model):
        inside = model.generate(text, **settings, compile_config=compiling)
    assert torch.equal(inside, untouched)
    assert Counted.graphs == 1


def test_a_failing_prompt_leaves_the_attention_as_it_was(vlm: LVLM, monkeypatch):
    inputs = inputs_of(vlm)
    config = vlm.model.config.get_text_config()
    before = config._attn_implementation
    layer = vlm.decoder_layers[2]
    with Truncation(1, 2)(vlm.model):
        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                vlm.model(**inputs)
        assert config._attn_implementation == before
