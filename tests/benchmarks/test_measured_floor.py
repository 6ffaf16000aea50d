"""The measured floors do what they are floors of: the same logits as the package's own passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from vlmflow.truncation import Truncation

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SYSTEM, USER, ANSWER = 5, 7, 3


@pytest.fixture(scope="module")
def floors():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import measured_floor
        import random_llava
    finally:
        sys.path.remove(str(BENCHMARKS))
    model = random_llava.build(
        layers=4, width=64, heads=4, key_heads=2, side=56, dtype="float32", device="cpu"
    )
    return measured_floor, model, random_llava.prompt_inputs(model, SYSTEM, 1, USER)


@pytest.mark.parametrize("layer", [0, 2, 3])
@torch.no_grad()
def test_a_truncated_prefill_by_hand_is_the_truncation(floors, layer: int):
    floor, model, inputs = floors
    image = model.config.image_seq_length
    tokens = [SYSTEM + image + USER] * layer + [SYSTEM + USER] * (4 - layer)
    by_hand = floor.truncated_prefill(model, inputs, tokens, USER)
    with Truncation(layer, 0)(model):
        expected = model(**inputs, logits_to_keep=1).logits
    assert torch.allclose(by_hand, expected, atol=1e-5)
    untouched = model(**inputs, logits_to_keep=1).logits
    assert not torch.allclose(by_hand, untouched, atol=1e-3)


@torch.no_grad()
def test_the_branches_by_hand_are_a_truncation_at_each_layer(floors):
    floor, model, inputs = floors
    by_hand = floor.curve_passes(model, inputs, SYSTEM, USER, ANSWER)
    assert torch.allclose(by_hand[0], model(**inputs).logits[0, -ANSWER:], atol=1e-5)
    for layer in range(4):
        with Truncation(layer, 0)(model):
            expected = model(**inputs, logits_to_keep=ANSWER).logits[0]
        assert torch.allclose(by_hand[1 + layer], expected, atol=1e-5)


@torch.no_grad()
def test_branches_of_a_study_by_hand_are_its_truncations(floors):
    """Of equally many tokens two, which are one batch, and a third that begins later."""
    floor, model, inputs = floors
    image, text = model.config.image_seq_length, SYSTEM + USER
    kept = image // 2
    branches = [(2, text + kept), (1, text), (3, text), (1, text + kept)]
    by_hand = floor.shared_prefills(model, inputs, branches, USER)
    assert torch.allclose(by_hand[0], model(**inputs).logits[0, -1:], atol=1e-5)
    ordered = sorted(branches, key=lambda branch: (branch[1], branch[0]))
    for own, (layer, count) in zip(by_hand[1:], ordered, strict=True):
        tokens = [text + image] * layer + [count] * (4 - layer)
        expected = floor.truncated_prefill(model, inputs, tokens, USER)[0]
        assert torch.allclose(own, expected, atol=1e-5)
