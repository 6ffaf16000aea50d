"""Cache layers that know the position in the conversation of each of their keys.

A truncated layer holds fewer keys than the conversation has tokens. To the model it reports the
conversation's length, so that positions, masks and the slicing of further turns stay right, and it
remembers, for every key, which position it came from.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from vlmflow.errors import InputError, ModelError
from vlmflow.truncation.static_cache import TruncatedStaticLayer


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
    record_past : bool
        Whether keys that leave the window are held until the next :meth:`crop`, as
        ``DynamicSlidingWindowLayer`` does.
    """

    def __init__(self, before: DynamicLayer, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = index
        self.seen = before.get_seq_length()
        self.ragged = False
        self.window: int | None = getattr(before, "sliding_window", None)
        self.is_sliding = self.window is not None
        self.record_past = bool(getattr(before, "record_past", False))
        self._pieces: list[Tensor] = []
        self._gone: list[Tensor] = []  # positions of keys that left the window
        self._next: Tensor | None = None
        self._next_length = 0
        if before.is_initialized:
            assert before.keys is not None
            self.dtype, self.device = before.dtype, before.device
            self.keys, self.values, self.is_initialized = before.keys, before.values, True
            batch, held = before.keys.shape[0], before.keys.shape[-2]
            positions = torch.arange(self.seen, device=before.keys.device).expand(batch, -1)
            left = self.seen - held
            self._gone, self._pieces = [positions[:, :left]], [positions[:, left:]]

    @property
    def positions(self) -> Tensor | None:
        """``(batch, keys)`` int64: position of each key in the conversation, -1: empty."""
        if len(self._pieces) > 1:
            self._pieces = [torch.cat(self._pieces, dim=1)]
        return self._pieces[0] if self._pieces else None

    @property
    def all_positions(self) -> Tensor | None:
        """The same with the keys that have left a sliding window, in order."""
        pieces = [*self._gone, *self._pieces]
        return torch.cat(pieces, dim=1) if pieces else None

    def activate_past_recording(self) -> None:
        """Hold all keys until the next :meth:`crop`; see ``DynamicSlidingWindowLayer``."""
        self.record_past = True

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
        """Append keys and values; see ``DynamicLayer.update``.

        Raises
        ------
        ModelError
            Outside of a truncation, where tokens are missing: no mask would say so.
        """
        new, grown = self._next, self._next_length
        if new is None:  # outside of a truncation: nothing is removed any more
            held = self.all_positions
            if held is not None and (self.ragged or held.shape[1] < self.seen):
                raise ModelError(
                    f"layer {self.index} of this cache lacks tokens that a truncation removed; go "
                    "on inside a truncation block, or start with a new cache"
                )
            grown = key_states.shape[-2]
            steps = torch.arange(self.seen, self.seen + grown, device=key_states.device)
            new = steps.expand(key_states.shape[0], grown)
        self._next = None
        self.seen += grown
        self._pieces.append(new.to(key_states.device))
        keys, values = super().update(key_states, value_states)
        if not self.record_past:
            self._leave_window()
        return keys, values

    def _leave_window(self) -> None:
        """Drop the keys that no later token can see in any row."""
        positions = self.positions
        if self.window is None or positions is None:
            return
        assert self.keys is not None
        assert self.values is not None
        gone = int((positions <= self.seen - self.window).sum(1).min())
        if gone:
            self.keys, self.values = self.keys[:, :, gone:], self.values[:, :, gone:]
            self._gone = [torch.cat([*self._gone, positions[:, :gone]], dim=1)]
            self._pieces = [positions[:, gone:]]

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
        self.seen, self.ragged, self._next = 0, False, None
        self._pieces, self._gone = [], []

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the conversation's newest ``-tokens_to_remove`` tokens.

        Those are the keys at its last positions, of which there may be fewer, and not equally many
        in every row.

        Raises
        ------
        InputError
            If keys are needed again that have left a sliding window.
        """
        if tokens_to_remove > 0:
            super().crop(tokens_to_remove)  # which refuses it
        positions = self.positions
        if positions is None:
            return
        assert self.keys is not None
        assert self.values is not None
        seen = self.seen + tokens_to_remove
        if self.window and any(bool((p > seen - self.window).any()) for p in self._gone):
            raise InputError(
                f"layer {self.index} of this cache cannot go back: keys have left its sliding "
                "window; call activate_past_recording on the cache first, or start with a new one"
            )
        self.seen = seen
        # Positions increase along a row: those that stay are its first ones.
        stay = (positions < self.seen).sum(1)
        longest = int(stay.max())
        if int(stay.min()) == longest:
            self.keys, self.values = self.keys[:, :, :longest], self.values[:, :, :longest]
            self._pieces = [positions[:, :longest]]
        else:  # shorter rows start with empty keys
            index = torch.arange(longest, device=positions.device) + (stay - longest)[:, None]
            chosen = index.clamp_min(0)
            self._pieces = [torch.where(index < 0, -1, positions.gather(1, chosen))]
            self.keys, self.values = (
                states.gather(2, chosen[:, None, :, None].expand(-1, states.shape[1], -1, width))
                for states, width in ((self.keys, self.keys.shape[-1]),
                                      (self.values, self.values.shape[-1]))
            )  # fmt: skip
            self.ragged = True
        self._leave_window()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        for pieces in (self._pieces, self._gone):
            pieces[:] = [piece.repeat_interleave(repeats, dim=0) for piece in pieces]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        for pieces in (self._pieces, self._gone):
            pieces[:] = [piece[rows.to(piece.device)] for piece in pieces]


def bare_copy(cache: Any) -> Any:
    """Copy a cache without its layers, and share nothing with it."""
    bare = copy.copy(cache)
    for name, value in vars(cache).items():
        setattr(bare, name, [] if name == "layers" else copy.deepcopy(value))
    return bare


def hold_fewer_keys(
    cache: Any, layer: int, *, fewer: bool
) -> TruncatedLayer | TruncatedStaticLayer | None:
    """Make a layer of a cache ready to hold fewer keys than the conversation has positions.

    The layer is replaced in the cache, and holds what it held. This is a step of its own, before a
    layer runs: everything after it only reads the cache. Where no tokens are missing in this call
    (``fewer`` is false), only a layer that was cut in an earlier call is of interest.

    Returns
    -------
    TruncatedLayer, TruncatedStaticLayer or None
        None where all keys are held, or the layer keeps a state of fixed size and no keys (linear
        attention).

    Raises
    ------
    InputError
        For caches whose layers cannot differ in length.
    """
    layers: list[Any] = getattr(cache, "layers", [])
    held: Any = layers[layer] if layer < len(layers) else None
    if isinstance(held, TruncatedLayer | TruncatedStaticLayer):
        return held
    if cache is None or not fewer:
        return None
    if isinstance(cache, Cache) and cache.layer_class_to_replicate is not None:
        while len(layers) <= layer:
            layers.append(cache.layer_class_to_replicate())
        held = layers[layer]
    is_growing = type(held) in (DynamicLayer, DynamicSlidingWindowLayer)
    if is_growing:
        layers[layer] = replaced = TruncatedLayer(held, layer)
        return replaced
    if type(held) is StaticLayer:
        layers[layer] = static = TruncatedStaticLayer(held, layer)
        return static
    if type(held) is LinearAttentionLayer:
        return None
    raise InputError(
        f"a {type(cache).__name__} of {type(held).__name__}s cannot hold layers of different "
        "lengths; use transformers' DynamicCache (cache_implementation='dynamic'), or, where no "
        "layer slides a window, a StaticCache"
    )
