"""Answers that are decoded side by side: cached prompts under several truncations, as a batch.

The prompts, B of them and padded to one length, are cached together under each truncation, in B
rows; the rows of all truncations make a batch, one truncation after the other. Per layer, rows hold
different numbers of keys; the shorter ones are padded, and each key's position says which are empty
(:mod:`vlmflow.truncation.cache`), as in any batch of truncated prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from vlmflow.truncation.cache import TruncatedLayer, bare_copy
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.masks import pad_rows

LEAST_ROOM = 256 * 2**20
"""Bytes that the keys and values of a batch may take however small the model is."""

PADDING = 0.25
"""Padding in a batch, as a share of what its rows hold, where they hold much."""

SPARE = 32
"""Tokens that room is kept for when a batch's keys and values are copied."""


@dataclass(eq=False)
class CachedPrompts:
    """B prompts as one truncation has cached them, and what follows them."""

    engine: Engine | None  # Truncates their decoding; None: the untouched model
    cache: Any  # Of B rows; None once it was joined with others
    logits: Tensor  # (B, vocabulary), after the prompts

    @property
    def counts_from(self) -> int | None:
        """First layer that counts positions anew; all of one batch have to agree on it."""
        policy = None if self.engine is None else self.engine.stages.policy
        return policy.first_layer if policy is not None and policy.positions == "repack" else None


def can_join(cache: Any) -> bool:
    """Whether all that a cache holds has rows: keys, values and states of known kinds."""
    return (
        type(cache) is DynamicCache
        and not cache.offloading
        and all(map(_can_join, cache.layers))
    )  # fmt: skip


def _can_join(layer: Any) -> bool:
    if type(layer) is LinearAttentionLayer:
        return not layer.record_past
    growing = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, TruncatedLayer)
    return growing and isinstance(layer.keys, Tensor) and isinstance(layer.values, Tensor)


def batches(parts: Sequence[CachedPrompts], model: Any) -> list[list[CachedPrompts]]:
    """Divide what truncations have cached into batches whose keys and values are not too large.

    With padding, those of a batch take up to a quarter of what the model's weights take, or
    :data:`LEAST_ROOM` where that is more. What takes more by itself is a batch of its own, and so
    is a cache that cannot be joined. Caches of about the same size go together; where all together
    would take more than the least room, attention to padding costs more than a batch saves, and
    padding is kept to :data:`PADDING` of what they hold.
    """
    sizes = {id(part): _bytes(part.cache) for part in parts}
    room, padding = LEAST_ROOM, float("inf")
    if len(parts) * sum(map(max, zip(*sizes.values(), strict=False))) > room:
        room, padding = room_for_keys(model), PADDING
    divided: list[list[CachedPrompts]] = []
    unfilled: dict[int | None, tuple[list[CachedPrompts], list[int]]] = {}
    for part in sorted(parts, key=lambda part: -sum(sizes[id(part)])):
        own = sizes[id(part)]
        batch, longest = unfilled.get(part.counts_from, ([], own))
        longest = [max(pair) for pair in zip(longest, own, strict=False)]
        held = sum(own) + sum(sum(sizes[id(other)]) for other in batch)
        padded = (len(batch) + 1) * sum(longest)
        if not batch or not own or padded > min(room, (1 + padding) * held):
            batch, longest = [], own
            divided.append(batch)
        batch.append(part)
        if own:
            unfilled[part.counts_from] = batch, longest
    return divided


def room_for_keys(model: Any) -> int:
    """Return the bytes that the keys and values of a batch may take where they take many."""
    weights = sum(int(weight.nbytes) for weight in model.parameters())
    return max(LEAST_ROOM, weights // 4)


def _bytes(cache: Any) -> list[int]:
    """Bytes that each layer holds; none where the cache cannot be joined."""
    layers = cache.layers if can_join(cache) else []
    return [sum(held.nbytes for held in _held(layer)) for layer in layers]


def _held(layer: Any) -> list[Tensor]:
    if isinstance(layer, LinearAttentionLayer):
        states = *layer.conv_states.values(), *layer.recurrent_states.values()
        return [state for state in states if state is not None]
    return [layer.keys, layer.values]


def joined(caches: Sequence[Any]) -> Any:
    """Put caches of B prompts each, for which :func:`can_join` holds, side by side."""
    if len(caches) == 1:
        return caches[0]
    cache = bare_copy(caches[0])
    cache.layers = [
        _joined([other.layers[index] for other in caches], index)
        for index in range(len(caches[0].layers))
    ]
    return cache


def can_crop(cache: Any) -> bool:
    """Whether newest tokens can be taken back: no layer has a state or a window."""
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, TruncatedLayer, Rows, TruncatedRows)
        and isinstance(getattr(layer, "keys", None), Tensor)
        and not getattr(layer, "window", None)
        for layer in cache.layers
    )


def picked(cache: Any, rows: Sequence[int]) -> Any:
    """Copy some rows of a cache for which :func:`can_crop` holds."""
    own = bare_copy(cache)
    layers: list[Any] = cache.layers
    for layer in layers:
        copied = copy.copy(layer)
        for name, value in vars(layer).items():
            if isinstance(value, list | dict):
                setattr(copied, name, value.copy())
        copied.reorder_cache(torch.tensor(rows, dtype=torch.int64, device=layer.keys.device))
        own.layers.append(copied)
    return own


def _joined(layers: list[Any], index: int) -> Any:
    """Put one layer of several caches side by side."""
    if any(isinstance(layer, TruncatedLayer) for layer in layers):
        return TruncatedRows([
            layer if isinstance(layer, TruncatedLayer) else TruncatedLayer(layer, index)
            for layer in layers
        ])  # fmt: skip
    if type(layers[0]) is DynamicLayer:
        return Rows(layers)
    if isinstance(layers[0], LinearAttentionLayer):
        return _joined_states(layers)
    layer = copy.copy(layers[0])  # a window's keys leave at one end: no room is kept at the other
    layer.keys = torch.cat([each.keys for each in layers])
    layer.values = torch.cat([each.values for each in layers])
    return layer


def _joined_states(layers: list[LinearAttentionLayer]) -> LinearAttentionLayer:
    """Put states of a fixed size side by side; ``layers`` are not changed."""
    layer = copy.copy(layers[0])
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # by number of the state; states are written in place
            setattr(layer, name, dict(value))
    for name in ("conv_states", "recurrent_states"):
        for number, state in getattr(layer, name).items():
            if state is not None:
                states = [getattr(each, name)[number] for each in layers]
                getattr(layer, name)[number] = torch.cat(states)
    return layer


class Rows(DynamicLayer):
    """Keys and values of several conversations, with room for the next ones.

    Growing by concatenation would copy all of them at every step.
    """

    def __init__(self, parts: Sequence[DynamicLayer]) -> None:
        vars(self).update(vars(parts[0]))
        # Of keys and values: a tensor with room, and the part of it that is held
        self._rooms: dict[str, tuple[Tensor, Tensor]] = {}
        self.keys, self.values = (
            self._beside(name, [getattr(part, name) for part in parts])
            for name in ("keys", "values")
        )

    def _beside(self, name: str, parts: list[Tensor]) -> Tensor:
        """Put states, (B, heads, n, width) each, into one tensor; short ones start with zeros."""
        first, longest = parts[0], max(part.shape[2] for part in parts)
        rows = sum(map(len, parts))
        whole = first.new_empty(rows, first.shape[1], longest + SPARE, first.shape[3])
        for places, part in zip(whole.chunk(len(parts)), parts, strict=True):
            places[:, :, : longest - part.shape[2]] = 0  # hidden, but not to be NaN
            places[:, :, longest - part.shape[2] : longest] = part
        self._rooms[name] = whole, whole[:, :, :longest]
        return self._rooms[name][1]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values; see ``DynamicLayer.update``."""
        self.keys = self._grown("keys", self.keys, key_states)
        self.values = self._grown("values", self.values, value_states)
        return self.keys, self.values

    def _grown(self, name: str, held: Any, new: Tensor) -> Tensor:
        whole, part = self._rooms[name]
        length, end = held.shape[2], held.shape[2] + new.shape[2]
        if part is not held or end > whole.shape[2]:  # rows or keys have left, or it is full
            whole = held.new_empty(*held.shape[:2], end + SPARE, held.shape[3])
            whole[:, :, :length] = held
        whole[:, :, length:end] = new
        self._rooms[name] = whole, whole[:, :, :end]
        return self._rooms[name][1]


class TruncatedRows(TruncatedLayer, Rows):
    """The same for conversations of equal length that hold different numbers of keys."""

    def __init__(self, parts: Sequence[TruncatedLayer]) -> None:
        Rows.__init__(self, parts)
        lengths = {int(part.keys.shape[2]) for part in parts if part.keys is not None}
        self.ragged = len(lengths) > 1 or any(part.ragged for part in parts)
        assert parts[0].keys is not None
        none = torch.empty(len(parts[0].keys), 0, dtype=torch.int64, device=self.device)
        self._pieces, self._gone = (
            [pad_rows([row for pieces in every for row in torch.cat([none, *pieces], dim=1)])[0]]
            for every in ([part._pieces for part in parts], [part._gone for part in parts])
        )
