"""A layer of a static cache that holds fewer keys than the conversation has positions.

Static caches are what decoding is compiled over: tensors of one size at one place. A truncated
layer has a slot for every token that stays and for every token to come, rounded up so that prompts
of about one size share a compiled graph. Decoding only cuts the model's own mask to these slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from vlmflow.errors import InputError, ModelError

BUCKET = 64
"""Slots come in multiples of so many."""


class TruncatedStaticLayer(StaticLayer):
    """Keys and values of some of a conversation's positions, in slots.

    The first slots are those of the prompt's tokens that stay, then comes one for every position
    after the prompt; slots of rounding stay empty.

    Attributes
    ----------
    conversation : int
        Positions that the cache was made for.
    seen : (,) int64
        Length of the conversation so far.
    positions : (B, n) int64 or None
        Positions of the prompt's tokens that stay, -1 where a row is empty.
    columns, real : (B, slots) int64, bool
        Position of the key in each slot, and whether it ever has one.
    room : (,) int64
        Slots that may be filled; the others are there by rounding.
    """

    def __init__(self, before: StaticLayer, index: int) -> None:
        super().__init__(max_cache_len=before.max_cache_len)
        self.index, self.conversation = index, before.max_cache_len
        self.seen = torch.tensor(0, dtype=torch.int64)
        self.positions: Tensor | None = None
        self.columns = self.real = self.room = torch.empty(0)
        self._prompt = 0
        self._masked = False

    @property
    def all_positions(self) -> Tensor | None:
        """The same as :attr:`positions`: nothing leaves these layers."""
        return self.positions

    def expect(self, positions: Tensor, length: int) -> None:
        """Announce a prompt of ``length`` tokens, of which those at ``positions`` stay."""
        if length > self.conversation:
            raise InputError(
                f"the prompt has {length} tokens, but the static cache was made for "
                f"{self.conversation}; make one with max_cache_len={length} plus the answer's"
            )
        self.positions, self._prompt = positions, length
        batch, kept = positions.shape
        free = self.conversation - length
        slots = min(self.conversation, -(-(kept + free) // BUCKET) * BUCKET)
        self.max_cache_len = slots
        later = torch.arange(length, length + slots - kept, device=positions.device)
        columns = torch.cat([positions, later.expand(batch, -1)], dim=1)
        self.real = (columns >= 0) & (columns < self.conversation)
        self.columns = torch.where(self.real, columns, 0)
        self.seen = self.seen.to(positions.device)
        # A tensor: as a number it would be part of the graph, and another one for every prompt.
        self.room = torch.tensor(kept + free, device=positions.device)
        for tensor in (self.columns, self.real, self.seen, self.room):
            torch._dynamo.mark_static_address(tensor)

    def cut_mask(self, mask: Any, rows: Tensor | None = None) -> Tensor:
        """Cut the untouched model's mask to the slots.

        Parameters
        ----------
        mask : Tensor or None
            ``(B or 1, heads or 1, Q, conversation)``, boolean (True: may look) or additive. None:
            of a prompt, causal without padding.
        rows : (B, n) int64, optional
            Of a prompt's queries those that stay, -1 where a row is empty; None: one more token.

        Raises
        ------
        ModelError
            For another mask.
        """
        if mask is None and rows is not None:
            self._masked = True
            queries = rows[:, :, None]
            seen = (self.columns[:, None] <= queries) & self.real[:, None]
            return (seen | (queries < 0))[:, None]
        if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] != self.conversation:
            raise ModelError(
                f"layer {self.index} of a static cache is truncated by its mask, but the model "
                "makes none over the whole cache; load it with attn_implementation='sdpa', or "
                "use cache_implementation='dynamic'"
            )
        self._masked = True
        batch, heads = len(self.columns), mask.shape[1]
        mask = mask.expand(batch, -1, -1, -1)
        if rows is not None:
            index = rows.clamp_min(0)[:, None, :, None].to(mask.device)
            mask = mask.gather(2, index.expand(-1, heads, -1, mask.shape[-1]))
        index = self.columns[:, None, None].expand(-1, heads, mask.shape[2], -1)
        cut: Tensor = mask.gather(3, index)
        real = self.real[:, None, None]
        if cut.dtype == torch.bool:
            cut = cut & real
        else:
            cut = cut.masked_fill(~real, torch.finfo(cut.dtype).min)
        if rows is None or not bool((rows < 0).any()):
            return cut
        # What an empty query sees is never used, but it must be a number.
        empty = (rows < 0)[:, None, :, None].to(cut.device)
        freed: Tensor = cut | empty if cut.dtype == torch.bool else cut.masked_fill(empty, 0.0)
        return freed

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put keys and values into their slots; see ``StaticLayer.update``.

        Raises
        ------
        ModelError
            Outside of a truncation, where no mask was cut to the slots.
        """
        if not self._masked:
            raise ModelError(
                f"layer {self.index} of this cache lacks tokens that a truncation removed; go on "
                "inside a truncation block, or start with a new cache"
            )
        self._masked = False
        first, count = not self.is_initialized, key_states.shape[-2]
        if first:
            self.lazy_initialization(key_states, value_states)
        slots = torch.arange(count, device=self.device) + self.cumulative_length
        # Past the cache's room there is no slot: torch refuses the number, as for other layers.
        slots = torch.where(slots < self.room, slots, self.max_cache_len)
        self.cumulative_length.add_(count)
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        self.seen.add_(self._prompt if first else count)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Length of the conversation, not of the keys."""
        return self.seen if self.is_initialized else 0

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        """Length and offset of the mask that an untruncated layer would need."""
        return self.conversation, 0

    def get_max_length(self) -> int:
        """Return how many positions the cache was made for."""
        return self.conversation

    def reset(self) -> None:
        """Refuse: another prompt needs other slots."""
        raise InputError(
            "a static cache that a truncation has shortened cannot be used again; make a new one"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        rows = beam_idx.to(self.columns.device)
        self.columns, self.real = self.columns[rows], self.real[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]


def static_layer(cache: Any, layer: int) -> TruncatedStaticLayer | None:
    """Return a cache's layer if it is a truncated static one that holds its prompt."""
    layers = getattr(cache, "layers", ())
    held = layers[layer] if layer < len(layers) else None
    return held if isinstance(held, TruncatedStaticLayer) and held.is_initialized else None


def is_static(cache: Any) -> bool:
    """Whether a cache has static layers: decoding over it may be compiled."""
    return any(isinstance(layer, StaticLayer) for layer in getattr(cache, "layers", ()))


def decodes_statically(cache: Any) -> bool:
    """Whether a cache holds a prompt of which a truncation kept a part in static layers."""
    return any(
        isinstance(held, TruncatedStaticLayer) and held.is_initialized
        for held in getattr(cache, "layers", ())
    )
