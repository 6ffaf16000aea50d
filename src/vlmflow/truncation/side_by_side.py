"""Answers that are decoded side by side: one prompt's cache under several truncations, as a batch.

Each row is one cached prompt. Per layer, rows hold different numbers of keys; the shorter ones are
padded, and each key's position says which are empty (:mod:`vlmflow.truncation.cache`), as in any
batch of truncated prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vlmflow.truncation.cache import TruncatedLayer, bare_copy
from vlmflow.truncation.engine import Engine

LEAST_ROOM = 256 * 2**20
"""Bytes that the keys and values of a batch may take however small the model is."""


@dataclass(eq=False)
class Row:
    """One cached prompt, and what follows it."""

    engine: Engine | None  # Truncates its decoding; None: the untouched model
    cache: Any
    logits: Tensor  # (1, vocabulary), after the prompt

    @property
    def counts_from(self) -> int | None:
        """First layer that counts positions anew; rows of one batch have to agree on it."""
        policy = None if self.engine is None else self.engine.stages.policy
        return policy.first_layer if policy is not None and policy.positions == "repack" else None


def room(model: Any) -> int:
    """Bytes that a batch's keys and values may take: a quarter of what the weights take."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return max(LEAST_ROOM, weights // 4)


def can_join(cache: Any) -> bool:
    """Whether a cache is keys and values alone, all of them on the model's devices."""
    return (
        type(cache) is DynamicCache
        and not cache.offloading
        and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, TruncatedLayer)
            and isinstance(layer.keys, Tensor)
            and isinstance(layer.values, Tensor)
            for layer in cache.layers
        )
    )


def batches(rows: Sequence[Row], room: int) -> list[list[Row]]:
    """Divide rows into batches whose keys and values, with padding, take up to ``room`` bytes.

    A row that takes more by itself is a batch of its own, and one with another kind of cache, too.
    Rows of about the same size go together.
    """
    divided: list[list[Row]] = []
    open_batches: dict[int | None, tuple[list[Row], list[int]]] = {}
    for row in sorted(rows, key=lambda row: -sum(_bytes(row.cache))):
        if not can_join(row.cache):
            divided.append([row])
            continue
        sizes = _bytes(row.cache)
        batch, longest = open_batches.get(row.counts_from, ([], sizes))
        longest = [max(pair) for pair in zip(longest, sizes, strict=True)]
        if not batch or (len(batch) + 1) * sum(longest) > room:
            batch, longest = [], sizes
            divided.append(batch)
        batch.append(row)
        open_batches[row.counts_from] = batch, longest
    return divided


def _bytes(cache: Any) -> list[int]:
    """Bytes of each layer's keys and values."""
    states = [(layer.keys, layer.values) for layer in cache.layers] if can_join(cache) else []
    return [keys.nbytes + values.nbytes for keys, values in states]


def joined(caches: Sequence[Any]) -> Any:
    """Put caches of one prompt each, for which :func:`can_join` holds, side by side."""
    if len(caches) == 1:
        return caches[0]
    cache = bare_copy(caches[0])
    cache.layers = [
        _joined([other.layers[index] for other in caches], index)
        for index in range(len(caches[0].layers))
    ]
    return cache


def _joined(layers: list[Any], index: int) -> Any:
    if any(isinstance(layer, TruncatedLayer) for layer in layers):
        return TruncatedLayer.of_rows(layers, index)
    layer = copy.copy(layers[0])
    layer.keys = torch.cat([each.keys for each in layers])
    layer.values = torch.cat([each.values for each in layers])
    return layer
