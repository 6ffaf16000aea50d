"""Choosing tokens waits for the device as often for many prompts as for one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.support.tiny import tiny_llava
from tests.truncation.test_shared_answers import prompt_of
from vlmflow import LVLM, Truncation
from vlmflow.lvlm.batch import collate, pad_id

READING = ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy")
"""What copies from a GPU to the host, and so waits for all work before it."""


class Waits(TorchFunctionMode):
    """Counts calls that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else None
        masks = [
            part for part in (index if isinstance(index, tuple) else (index,))
            if isinstance(part, Tensor) and part.dtype == torch.bool
        ]  # fmt: skip
        if name in READING or masks:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def waits(vlm, prompts, policy):
    inputs, _ = collate(prompts, pad_id(vlm.processor.tokenizer))
    counting = Waits()
    with torch.no_grad(), policy(vlm.model), counting:
        vlm.model(**inputs, use_cache=False)
    return counting.calls


def test_what_waits_is_counted():
    with Waits() as counting:
        numbers = torch.arange(3)
        numbers.tolist()
        assert bool((numbers > 1).any())
        numbers[numbers > 1] = 0
        numbers[torch.tensor([0])] = 1
    assert counting.calls == {"tolist": 1, "__bool__": 1, "__setitem__": 1}


@pytest.mark.parametrize(
    "policy",
    [
        Truncation(2, 5, "mean_attention"),
        Truncation(2, 5, "text_attention", remainder="average"),
        Truncation((1, 3), (8, 2), "value_norm", remainder="merge"),
        Truncation((1, 3), (8, 0), "last_attention"),
        Truncation(2, 5, "random"),
    ],
    ids=str,
)
def test_a_batch_waits_as_often_as_one_prompt(policy):
    vlm = LVLM(*tiny_llava(3))
    prompts = [prompt_of(vlm, seed=seed, pictures=1 + seed % 2) for seed in range(4)]
    one, all_of_them = waits(vlm, prompts[:1], policy), waits(vlm, prompts, policy)
    assert one
    assert all_of_them.total() <= one.total() + 1, (one, all_of_them)
