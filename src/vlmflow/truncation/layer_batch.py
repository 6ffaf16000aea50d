"""One call of a decoder layer for several batches of equal size, each with a cache of its own.

A layer costs about as much for a few tokens as for many, so short sequences share its calls. What
each batch was to be called with is put side by side; its keys and values go to its own cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from vlmflow.truncation.cache import TruncatedLayer


class CannotBatchError(Exception):
    """A layer takes something that is not per sequence."""


class KeysOfMany:
    """Takes the place of the caches of several batches, all empty at the layer that is called.

    Anything but keys and values would be one for all, so asking for it raises
    :class:`CannotBatchError`.
    """

    def __init__(self, caches: Sequence[Any]) -> None:
        self._caches = caches
        self._updates: list[tuple[Tensor, Tensor, int]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Note keys and values, (B, heads, n, width); more than these no layer here takes."""
        self._updates.append((key_states, value_states, layer_idx))
        return key_states, value_states

    def __getattr__(self, name: str) -> Any:
        raise CannotBatchError(name)

    def hand_out(self) -> None:
        """Give every cache its own, once the layer has run."""
        for keys, values, layer in self._updates:
            parts = (states.chunk(len(self._caches)) for states in (keys, values))
            for cache, own_keys, own_values in zip(self._caches, *parts, strict=True):
                cache.update(own_keys, own_values, layer)


def can_share_calls(cache: Any, layer: int) -> bool:
    """Whether a cache holds nothing but keys and values, and none yet of this layer."""
    if type(cache) is not DynamicCache or cache.offloading:
        return False
    held: Any = cache.layers[layer] if layer < len(cache.layers) else None
    empty_keys = (
        type(held) in (DynamicLayer, TruncatedLayer)
        and not held.is_initialized
        and getattr(held, "window", None) is None
    )
    return held is None or empty_keys


class SideBySide:
    """Puts the keyword arguments of calls with ``rows`` sequences each side by side.

    The same ones are joined once.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._made: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def arguments(self, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what one call for all takes, without its cache.

        Raises
        ------
        CannotBatchError
            If something is not per sequence, and not the same for all.
        """
        names = [name for name in calls[0] if name != "past_key_values"]
        if any(call.keys() != calls[0].keys() for call in calls):
            raise CannotBatchError("different arguments")
        return {name: self._joined(name, [call[name] for call in calls]) for name in names}

    def _joined(self, name: str, values: list[Any]) -> Any:
        if all(value is None for value in values):
            return None
        key = tuple(map(id, values))
        if key not in self._made:  # the values are held, so that their ids stay their own
            self._made[key] = (values, _joined(name, values, self.rows))
        return self._made[key][1]


def _joined(name: str, values: list[Any], rows: int) -> Any:
    """Join one argument of several calls along the axis of sequences, of which each has ``rows``.

    What is the same for all sequences of a call may be there once.
    """
    first = values[0]
    if isinstance(first, Tensor):
        if name == "position_ids":
            axis = first.ndim - 2
        else:
            axis = first.ndim - 3 if name.startswith("position_embeddings") else 0
        if any(not isinstance(value, Tensor) or value.shape != first.shape for value in values):
            raise CannotBatchError(name)
        if axis < 0 or first.ndim < 2 or first.shape[axis] not in (1, rows):
            raise CannotBatchError(name)
        each = [*first.shape[:axis], rows, *first.shape[axis + 1 :]]
        return torch.cat([value.expand(each) for value in values], dim=axis)
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(name, list(parts), rows) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _joined(name, [value[key] for value in values], rows) for key in first}
    if any(value is not first for value in values):
        raise CannotBatchError(name)
    return first
