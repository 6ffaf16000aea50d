"""The loss of turns of unequal length, and which of them are answered without a mistake.

``n`` is the number of labelled positions of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def turn_loss(logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy, an answer of m tokens counting as much as sqrt(m) answers of one token.

    Otherwise captions, with forty tokens each, drown the questions. ``lengths``, (n,), holds the
    number of tokens of the answer that a label belongs to.
    """
    weight = lengths.float().rsqrt()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (weight * losses).sum() / weight.sum()


def turn_ids(labelled: Tensor, turns: Tensor) -> Tensor:
    """Give each turn of a batch an id: (B, N) masks and turns -> (n,)."""
    return labelled.nonzero()[:, 0] * 1000 + turns[labelled]


def exact_turns(right: Tensor, turns: Tensor, kinds: Tensor) -> Iterator[tuple[int, float]]:
    """Whether every token of each turn's answer was predicted (no picture is seen twice).

    All are (n,): which labels were predicted, :func:`turn_ids`, and kinds of questions. Yields a
    kind and 1 or 0 per turn.
    """
    _, inverse = torch.unique(turns, return_inverse=True)
    count = int(inverse.max()) + 1
    exact = torch.ones(count, device=right.device)
    exact = exact.scatter_reduce(0, inverse, right.float(), reduce="amin")
    kind_of_turn = torch.zeros(count, dtype=torch.long, device=right.device)
    kind_of_turn[inverse] = kinds
    yield from zip(kind_of_turn.tolist(), exact.tolist(), strict=True)
