"""One call of a truncated model: its tokens, and what each stage has left of them.

Three index spaces meet here, and nowhere else are they translated:

* **positions** count the tokens of the conversation, 0 to ``total - 1``: what masks, rotary
  embeddings and cached keys are about. The call's own tokens are the last ``length`` of them:
  ``position = past + slot``.
* **slots** count the call's own tokens, 0 to ``length - 1``: what ``input_ids`` and the hidden
  states of an untouched layer are indexed by.
* **rows still in the sequence** count what a layer is given after a stage, 0 to ``n - 1``:
  :attr:`Cut.slots` maps them to slots. Prompts of a batch may keep different numbers of tokens;
  shorter rows then start with -1, which stands for nothing. :attr:`Cut.local` maps them to the rows
  that the stage before had left.

Image tokens are the slots where :attr:`ForwardCall.is_image` holds; the k-th of a prompt is the
k-th of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlmflow.errors import InputError
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
        Rows as they came to the stage, and slots; -1 stands for nothing and comes first.
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
class ForwardCall:
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
    _made: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, ids: object, arguments: Mapping[str, Any], image_tokens: tuple[int, ...]
    ) -> ForwardCall:
        """Read a call off what the model, or its language model, is called with.

        Raises
        ------
        InputError
            If there are no token ids.
        """
        if not isinstance(ids, Tensor):
            raise InputError(
                "a truncation finds image tokens in input_ids, but the model was called without "
                "them; pass input_ids and pixel_values instead of inputs_embeds"
            )
        cache, mask = arguments.get("past_key_values"), arguments.get("attention_mask")
        valid = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = mask.to(ids.device) != 0
        if ids.shape[1] > 1:
            is_image = torch.isin(ids, torch.tensor(image_tokens, device=ids.device))
            images = is_image.sum(1).tolist()
        else:  # a picture is never one token alone, and decoding must not wait for the device
            is_image, images = torch.zeros_like(ids, dtype=torch.bool), [0] * len(ids)
        past = 0 if cache is None else int(cache.get_seq_length())
        return cls(arguments, ids, past, valid, is_image, images)

    @property
    def length(self) -> int:
        """``N``, the number of the call's own tokens."""
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
        cuts = [cut for cut in self.cuts if cut.layer <= layer]
        return cuts[-1] if cuts else None

    def slots(self, cut: Cut | None) -> Tensor:
        """Return the slots that are left after a cut, ``(B, n)``."""
        if cut is not None:
            return cut.slots
        steps = torch.arange(self.length, device=self.ids.device)
        return self.once("steps", None, lambda: steps.expand(len(self.ids), -1))

    def positions(self, cut: Cut | None) -> Tensor:
        """Return their positions in the conversation, ``(B, n)``, -1 for nothing."""
        slots = self.slots(cut)
        return self.once(
            ("positions", id(cut)), cut, lambda: torch.where(slots < 0, -1, slots + self.past)
        )

    def once(self, key: Hashable, source: object, make: Callable[[], T]) -> T:
        """Make something the first time and give it again after that.

        All layers of a stage are called with the same masks and embeddings. ``source`` is held, so
        that an ``id`` in the key stays its own.
        """
        if key not in self._made:
            self._made[key] = (source, make())
        result: T = self._made[key][1]
        return result
