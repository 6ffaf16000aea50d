"""FLOPs: worked examples of the formula, and the exact count against a counter."""

from __future__ import annotations

import pytest

from tests.support.families import FAMILIES, picture
from tests.support.tiny import tiny_llava
from tests.truncation.test_truncation import QUESTIONS, encode
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model_parts import decoder_layers
from vlmflow.truncation import Truncation
from vlmflow.truncation.flops import (
    DecoderShape,
    formula_share,
    measured_flops,
    prefill_cost,
    tokens_per_layer,
)

LLAVA_7B = DecoderShape(32, 4096, 32, 32, 128, 11008, 32064, 3)
LLAVA_13B = DecoderShape(40, 5120, 40, 40, 128, 13824, 32064, 3)


@pytest.mark.parametrize(
    ("shape", "layer", "share"),
    [(LLAVA_7B, 3, 0.569), (LLAVA_13B, 2, 0.550)],
)
def test_fastvs_formula_gives_fastvs_figures(shape, layer, share):
    """FastV's README says 57 % and 55 % for half of 576 image tokens beside about 40 of text."""
    tokens = tokens_per_layer(Truncation(layer, 0.5), shape, 40, 576)
    assert formula_share(shape, tokens, 616) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("policy", "counts"),
    [
        (None, [50, 50, 50, 50]),
        (Truncation(2, 0), [50, 50, 10, 10]),
        (Truncation((1, 3), (0.5, 5)), [50, 30, 30, 15]),
        (Truncation((1, 3), (0.5, 5), remainder="average"), [50, 31, 31, 16]),
        (Truncation(0, 40, "random", remainder="average"), [50, 50, 50, 50]),
    ],
)
def test_tokens_per_layer(policy, counts):
    shape = DecoderShape(4, 8, 2, 2, 4, 16, 10, 3)
    assert tokens_per_layer(policy, shape, 10, 40) == counts


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize(
    "policy",
    [
        None,
        Truncation(2, 0),
        Truncation(2, 0.25),
        Truncation((1, 3), (0.5, 0.25), "text_attention"),
        Truncation(1, 0.5, "mean_attention"),
        Truncation(1, 0.5, "diversity"),
        Truncation(1, 0.75, "duplication"),
        Truncation(0, 0.5, "question_similarity"),
    ],
    ids=lambda policy: "untouched" if policy is None else policy.ranking.known_as(),
)
def test_the_exact_count_is_what_a_counter_counts(policy, pictures, kv_heads, attention):
    """Every matrix product of the prefill, ranking included: to the last operation."""
    model, processor = tiny_llava(0, attn_implementation=attention, kv_heads=kv_heads)
    inputs = encode(processor, range(pictures), QUESTIONS[0])
    ids = inputs["input_ids"][0]
    image = ids == model.config.image_token_id
    system = int(image.int().argmax())
    # Text between two pictures is user text, too.
    user = len(ids) - system - int(image.sum())
    cost = prefill_cost(model, decoder_layers(model), policy, system, int(image.sum()), user)
    assert cost.exact == measured_flops(model, inputs, policy)


def test_what_the_config_does_not_tell_is_not_computed():
    """Where a count is given for a family it is the measured one; elsewhere there is none."""
    counted = set()
    for family in FAMILIES:
        if family.queries:
            continue
        vlm = family.lvlm()
        prompt = vlm.prepare(picture(1, (30, 20)), "What is it?")
        counts = [
            len(prompt.layout.positions_of(segment))
            for segment in (Segment.SYSTEM, Segment.IMAGE, Segment.USER)
        ]
        for policy in (None, Truncation(2, 0)):
            cost = prefill_cost(vlm.model, vlm.decoder_layers, policy, *counts)
            if cost.exact is not None:
                measured = measured_flops(vlm.model, prompt.inputs, policy)
                assert cost.exact == pytest.approx(measured, rel=1e-6), family.name
                counted.add(family.name)
    assert counted == {"llava", "paligemma"}
