"""One call of a truncated model: its tokens, and what each stage has left of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlmflow.flow.attention_rows import AttentionCall

T = TypeVar("T")


@dataclass(eq=False)
class Cut:
    """What one stage leaves of a call's tokens.

    Parameters
    ----------
    layer : int
        The first layer that sees only these.
    local, slots : (B, n) int64
        Indices into the sequence as it came to the stage, and into the call's own tokens; -1
        stands for nothing and comes first in a row.
    ragged : bool
        Whether there is a -1.
    kept, removed : list of B Tensor
        Image tokens of each row, in local indices.
    sizes : (B, n), optional
        How many tokens each one stands for, once some were merged.
    """

    layer: int
    local: Tensor
    slots: Tensor
    ragged: bool
    kept: list[Tensor]
    removed: list[Tensor]
    sizes: Tensor | None = None


@dataclass(eq=False)
class Call:
    """Tokens of one call and its cuts so far.

    Parameters
    ----------
    arguments : mapping
        What the model's forward was called with.
    ids : (B, N) int64
        The call's own tokens.
    past : int
        Tokens of the conversation before them.
    valid : (B, past + N) bool, optional
        False at padding; None: there is none.
    is_image : (B, N) bool
        Image tokens.
    images : list of B int
        How many each row has.
    cuts : list of Cut
        What stages have left so far.
    attention : dict of int to AttentionCall
        Of the layers that a ranking reads, until it has read them.
    maps : list of B (layers, N), optional
        For oracles: the signal's map of every layer, 0 where there is no image token.
    """

    arguments: Mapping[str, Any]
    ids: Tensor
    past: int
    valid: Tensor | None
    is_image: Tensor
    images: list[int]
    cuts: list[Cut] = field(default_factory=list)
    attention: dict[int, AttentionCall] = field(default_factory=dict)
    maps: list[Tensor] | None = None
    _known: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """``N``."""
        return self.ids.shape[1]

    @property
    def total(self) -> int:
        """Length of the conversation with this call."""
        return self.past + self.length

    @property
    def has_images(self) -> bool:
        """Whether any row brings image tokens."""
        return any(self.images)

    def cut_at(self, layer: int) -> Cut | None:
        """Return the last cut at or before a layer."""
        found = [cut for cut in self.cuts if cut.layer <= layer]
        return found[-1] if found else None

    def slots(self, cut: Cut | None) -> Tensor:
        """Return the call's own tokens that are left after a cut, ``(B, n)``."""
        if cut is not None:
            return cut.slots
        steps = torch.arange(self.length, device=self.ids.device)
        return self.once("steps", None, lambda: steps.expand(len(self.ids), -1))

    def positions(self, cut: Cut | None) -> Tensor:
        """Return where these stand in the conversation, -1 for nothing."""
        slots = self.slots(cut)
        return self.once(
            ("positions", id(cut)), cut, lambda: torch.where(slots < 0, -1, slots + self.past)
        )

    def once(self, key: Hashable, source: object, make: Callable[[], T]) -> T:
        """Make something the first time and give it again after that.

        All layers of a stage are called with the same masks and embeddings. ``source`` is held, so
        that an ``id`` in the key stays its own.
        """
        if key not in self._known:
            self._known[key] = (source, make())
        result: T = self._known[key][1]
        return result
