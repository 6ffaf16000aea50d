"""Cache layers that know the position in the conversation of each of their keys.

A truncated layer holds fewer keys than the conversation has tokens. To the model it reports the
conversation's length, so that positions, masks and the slicing of further turns stay right, and it
remembers, for every key, which position it came from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from vlmflow.errors import InputError


class TruncatedLayer(DynamicLayer):
    """Keys and values of some of a conversation's positions.

    Attributes
    ----------
    seen : int
        Length of the conversation.
    ragged : bool
        Whether prompts of the batch kept different numbers of tokens; shorter ones then start with
        empty keys.
    window : int or None
        Sliding window of the layer, in positions of the conversation.
    """

    def __init__(self, before: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = before.get_seq_length()
        self.ragged = False
        self.window: int | None = getattr(before, "sliding_window", None)
        self.is_sliding = self.window is not None
        self._pieces: list[Tensor] = []
        self._next: Tensor | None = None
        self._next_length = 0
        if before.is_initialized:
            assert before.keys is not None
            self.dtype, self.device = before.dtype, before.device
            self.keys, self.values, self.is_initialized = before.keys, before.values, True
            batch, held = before.keys.shape[0], before.keys.shape[-2]
            positions = torch.arange(self.seen - held, self.seen, device=before.keys.device)
            self._pieces = [positions.expand(batch, held)]

    @property
    def positions(self) -> Tensor | None:
        """``(batch, keys)`` int64: position of each key in the conversation, -1: empty."""
        if len(self._pieces) > 1:
            self._pieces = [torch.cat(self._pieces, dim=1)]
        return self._pieces[0] if self._pieces else None

    def expect(self, positions: Tensor, length: int, *, ragged: bool) -> None:
        """Announce the next :meth:`update`.

        Its tokens have the positions ``(batch, n)``, -1 where a row is empty; the conversation
        grows by ``length`` tokens.
        """
        self._next, self._next_length = positions, length
        self.ragged |= ragged

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values; see ``DynamicLayer.update``."""
        new, grown = self._next, self._next_length
        if new is None:  # outside of a truncation: nothing is removed any more
            grown = key_states.shape[-2]
            steps = torch.arange(self.seen, self.seen + grown, device=key_states.device)
            new = steps.expand(key_states.shape[0], grown)
        self._next = None
        self.seen += grown
        self._pieces.append(new.to(key_states.device))
        keys, values = super().update(key_states, value_states)
        if self.window is not None:  # drop keys that no later token can see in any row
            positions = torch.cat(self._pieces, dim=1)
            gone = int((positions <= self.seen - self.window).sum(1).min())
            self.keys, self.values = keys[:, :, gone:], values[:, :, gone:]
            self._pieces = [positions[:, gone:]]
        return keys, values

    def get_seq_length(self) -> int:
        """Length of the conversation, not of the keys."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask that an untruncated layer would need."""
        if self.window is None:
            return self.seen + query_length, 0
        held = min(self.seen, self.window - 1)
        return held + query_length, self.seen - held

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen, self.ragged, self._pieces, self._next = 0, False, [], None

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest ``-tokens_to_remove`` tokens."""
        super().crop(tokens_to_remove)
        positions = self.positions
        if tokens_to_remove and positions is not None:
            self._pieces = [positions[:, :tokens_to_remove]]
            self.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        self._pieces = [piece.repeat_interleave(repeats, dim=0) for piece in self._pieces]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        self._pieces = [piece[rows.to(piece.device)] for piece in self._pieces]


def hold_fewer_keys(cache: Any, layer: int, *, fewer: bool) -> TruncatedLayer | None:
    """Make a layer of a cache ready to hold fewer keys than the conversation has positions.

    The layer is replaced in the cache, and holds what it held. This is a step of its own, before a
    layer runs: everything after it only reads the cache. Where no tokens are missing in this call
    (``fewer`` is false), only a layer that was cut in an earlier call is of interest.

    Returns
    -------
    TruncatedLayer or None
        None where all keys are held, or the layer keeps a state of fixed size and no keys (linear
        attention).

    Raises
    ------
    InputError
        For caches whose layers cannot differ in length.
    """
    layers: list[Any] = getattr(cache, "layers", [])
    held: Any = layers[layer] if layer < len(layers) else None
    if isinstance(held, TruncatedLayer):
        return held
    if cache is None or not fewer:
        return None
    if isinstance(cache, Cache) and cache.layer_class_to_replicate is not None:
        while len(layers) <= layer:
            layers.append(cache.layer_class_to_replicate())
        held = layers[layer]
    is_growing = type(held) in (DynamicLayer, DynamicSlidingWindowLayer)
    if is_growing and not getattr(held, "record_past", False):
        layers[layer] = replaced = TruncatedLayer(held)
        return replaced
    if type(held) is LinearAttentionLayer:
        return None
    raise InputError(
        f"a {type(cache).__name__} of {type(held).__name__}s cannot hold layers of different "
        "lengths; use transformers' DynamicCache (cache_implementation='dynamic')"
    )
