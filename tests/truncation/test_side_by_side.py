"""Answers of several truncations that are decoded as one batch are those of each by itself."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import tiny_llava
from tests.truncation.test_shared_answers import one_by_one, prompt_of
from vlmflow import LVLM, Truncation
from vlmflow.truncation import side_by_side
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.shared_answers import shared_answers
from vlmflow.truncation.shared_prefill import SharedPrefill

POLICIES = [
    Truncation(0, 0),
    Truncation(1, 0),
    Truncation(1, 0.5, "uniform"),
    Truncation(2, 3, "value_norm"),
    Truncation((1, 3), (0.5, 1), "last_attention"),
    Truncation(2, 0.3, "text_attention", remainder="merge"),
    Truncation(3, 1.0),
]


@pytest.fixture
def vlm():
    model, processor = tiny_llava(21, kv_heads=2)
    model.generation_config.eos_token_id = None
    return LVLM(model, processor)


def longer(vlm, seed):
    """A prompt with two pictures."""
    return prompt_of(vlm, seed=seed, pictures=2)


def calls_of(module, run):
    """Outputs of a module during a run."""
    outputs = []
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    run()
    handle.remove()
    return outputs


@pytest.mark.parametrize("room", [side_by_side.LEAST_ROOM, 1], ids=["together", "drafted"])
def test_logits_are_those_of_each_by_itself(vlm, monkeypatch, room):
    monkeypatch.setattr(side_by_side, "LEAST_ROOM", room)
    prompt = prompt_of(vlm)
    prefill, *steps = calls_of(
        vlm.model.lm_head, lambda: shared_answers(vlm, [prompt], POLICIES, max_new_tokens=5)[0]
    )
    shapes = [tuple(step.shape[:2]) for step in steps]
    if room == 1:
        assert shapes[:4] == [(1, 1)] * 4  # the untouched answer
        assert any(count > 1 and tokens == 4 for count, tokens in shapes)  # put to others at once
    else:
        assert shapes == [(len(POLICIES) + 1, 1)] * 4
    rows = torch.cat([step.flatten(0, 1) for step in steps])
    for number, policy in enumerate([None, *POLICIES]):
        _, output = vlm.generate_with(
            prompt, max_new_tokens=5, truncation=policy, options={"output_logits": True}
        )
        first, *later = output.logits
        torch.testing.assert_close(prefill[:, number], first, rtol=0, atol=1e-5)
        # Batches have an order of their own: one of their rows is this one.
        for logits in later:
            assert (rows - logits).abs().amax(1).min() < 1e-5


def test_logits_of_prompts_together_are_those_of_each_by_itself(vlm):
    prompts = [prompt_of(vlm), prompt_of(vlm, seed=2), longer(vlm, seed=3)]
    prefill, *steps = calls_of(
        vlm.model.lm_head, lambda: shared_answers(vlm, prompts, POLICIES, max_new_tokens=5)
    )
    count = len(POLICIES) + 1
    assert [tuple(step.shape[:2]) for step in steps] == [(len(prompts) * count, 1)] * 4
    for row, prompt in enumerate(prompts):
        for number, policy in enumerate([None, *POLICIES]):
            _, output = vlm.generate_with(
                prompt, max_new_tokens=5, truncation=policy, options={"output_logits": True}
            )
            first, *later = output.logits
            torch.testing.assert_close(prefill[row : row + 1, number], first, rtol=0, atol=1e-5)
            for step, logits in zip(steps, later, strict=True):
                # Truncations have an order of their own, prompts keep theirs.
                of_prompt = step[:, 0].unflatten(0, (count, len(prompts)))[:, row]
                assert (of_prompt - logits).abs().amax(1).min() < 1e-5


def test_prompts_end_each_at_its_own_step(vlm):
    prompts = [prompt_of(vlm), longer(vlm, seed=3), prompt_of(vlm, seed=2)]
    long = shared_answers(vlm, prompts, POLICIES, max_new_tokens=8)
    ends = sorted({ids[place] for own in long for place, ids in enumerate(own)})
    vlm.model.generation_config.eos_token_id = ends[::3]
    ended = shared_answers(vlm, prompts, POLICIES, max_new_tokens=8)
    assert len({len(ids) for own in ended for ids in own}) > 2
    assert ended == [one_by_one(vlm, prompt, POLICIES, 8) for prompt in prompts]


def test_with_a_static_cache_padding_is_not_the_prompts(vlm):
    """The model is given another mask then; random choices depend on the prompt's own tokens."""
    vlm.model.generation_config.cache_implementation = "static"
    prompts = [prompt_of(vlm), longer(vlm, seed=3)]
    policies = [*POLICIES, Truncation(1, 0.4, "random"), Truncation(2, 3, "text_attention")]
    answers = shared_answers(vlm, prompts, policies, max_new_tokens=4)
    assert answers == [one_by_one(vlm, prompt, policies, 4) for prompt in prompts]


def test_pictures_are_encoded_once_whatever_processes_the_logits(vlm):
    vlm.model.generation_config.repetition_penalty = 2.0
    prompts = [prompt_of(vlm), longer(vlm, seed=3)]
    encoded = calls_of(
        vlm.model.model.vision_tower,
        lambda: shared_answers(vlm, prompts, POLICIES, max_new_tokens=3),
    )
    assert len(encoded) == 1


def test_as_many_prompts_go_together_as_their_keys_have_room(vlm, monkeypatch):
    prompts = [prompt_of(vlm, seed=seed) for seed in range(4)]
    expected = [one_by_one(vlm, prompt, POLICIES, 3) for prompt in prompts]
    config = vlm.model.config.text_config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    of_token = config.num_hidden_layers * 2 * heads * width * 4  # float32
    of_prompt = (len(POLICIES) + 1) * len(prompts[0].layout) * of_token
    weights = sum(weight.nbytes for weight in vlm.model.parameters()) // 4
    assert weights < 2 * of_prompt  # or it would be the room
    monkeypatch.setattr(side_by_side, "LEAST_ROOM", int(2.5 * of_prompt))
    answers = []
    outputs = calls_of(
        vlm.model.lm_head,
        lambda: answers.extend(shared_answers(vlm, prompts, POLICIES, max_new_tokens=3)),
    )
    assert answers == expected
    assert [len(output) for output in outputs if output.shape[1] > 1] == [2, 2]


def test_rows_end_each_at_its_own_step(vlm):
    prompt = prompt_of(vlm, seed=2)
    long = shared_answers(vlm, [prompt], POLICIES, max_new_tokens=8)[0]
    ends = sorted({ids[place] for place, ids in enumerate(long)})
    vlm.model.generation_config.eos_token_id = ends
    ended = shared_answers(vlm, [prompt], POLICIES, max_new_tokens=8)[0]
    assert len({len(ids) for ids in ended}) > 2
    assert ended == one_by_one(vlm, prompt, POLICIES, 8)


def test_what_generate_prepares_for_one_prompt_stays_with_it(vlm):
    """This processor holds the ids of the prompt, one row."""
    prompt = prompt_of(vlm)
    plain = shared_answers(vlm, [prompt], POLICIES[:3], max_new_tokens=5)[0]
    vlm.model.generation_config.encoder_repetition_penalty = 3.0
    punished = shared_answers(vlm, [prompt], POLICIES[:3], max_new_tokens=5)[0]
    assert punished == one_by_one(vlm, prompt, POLICIES[:3], 5)
    assert punished != plain
    prompts = [longer(vlm, seed=4), prompt]
    expected = [one_by_one(vlm, own, POLICIES[:3], 5) for own in prompts]
    assert shared_answers(vlm, prompts, POLICIES[:3], max_new_tokens=5) == expected


def rows_of(vlm, policies):
    """The rows of a prompt, cached."""
    prompt = prompt_of(vlm)
    with torch.no_grad():
        inputs = vlm.model.prepare_inputs_for_generation(
            **prompt.inputs,
            past_key_values=side_by_side.DynamicCache(config=vlm.model.config.get_text_config()),
            is_first_iteration=True,
        )
        engines = [Engine(vlm.model, policy, vlm.family) for policy in policies]
        prefill = SharedPrefill(engines, vlm.model)
        logits = prefill.run(inputs["input_ids"], inputs)[:, :1]
    caches = [inputs["past_key_values"], *(branch.cache for branch in prefill.branches)]
    return [
        side_by_side.CachedPrompts(engine, cache, logits[:, 0])
        for engine, cache in zip([None, *engines], caches, strict=True)
    ]


def test_a_batch_takes_no_more_memory_than_stated(vlm, monkeypatch):
    rows = rows_of(vlm, POLICIES)
    (whole,) = side_by_side.batches(rows, vlm.model)
    assert set(map(id, whole)) == set(map(id, rows))

    def bytes_of(batch):
        cache = side_by_side.joined([row.cache for row in batch])
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    weights = sum(weight.nbytes for weight in vlm.model.parameters())
    monkeypatch.setattr(side_by_side, "LEAST_ROOM", room := max(bytes_of(whole) // 3, weights // 4))
    parts = side_by_side.batches(rows, vlm.model)
    assert sorted(id(row) for part in parts for row in part) == sorted(map(id, rows))
    assert 1 < len(parts) < len(rows)
    assert all(bytes_of(part) <= room for part in parts)
    prompt = prompt_of(vlm)
    answers = shared_answers(vlm, [prompt], POLICIES, max_new_tokens=4)[0]
    assert answers == one_by_one(vlm, prompt, POLICIES, 4)


def test_positions_are_counted_anew_from_one_layer_in_a_batch(vlm):
    policies = [Truncation(layer, 0, positions="repack") for layer in (1, 2, 2)]
    rows = rows_of(vlm, [*policies, Truncation(1, 0)])
    batches = side_by_side.batches(rows, vlm.model)
    counted = [{row.counts_from for row in batch} for batch in batches]
    assert sorted(map(len, batches)) == [1, 2, 2]
    assert sorted(map(str, counted)) == ["{1}", "{2}", "{None}"]


def test_a_layer_that_reads_more_of_its_cache_than_keys_is_called_alone(vlm):
    prompt, seen = prompt_of(vlm), []
    expected = one_by_one(vlm, prompt, POLICIES, 4)
    layer = vlm.decoder_layers[2]
    forward = layer.forward

    def shares(hidden, *args, past_key_values=None, **kwargs):
        output = forward(hidden, *args, past_key_values=past_key_values, **kwargs)
        seen.append((len(hidden), len(past_key_values.layers)))  # after its keys were taken
        return output

    layer.forward = shares
    assert shared_answers(vlm, [prompt], POLICIES, max_new_tokens=4)[0] == expected
    assert [rows for rows, _ in seen[:4]] == [1] * 4
