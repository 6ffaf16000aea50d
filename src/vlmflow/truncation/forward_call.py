"""One call of a truncated model: its tokens, and what each stage has left of them.

Three index spaces meet in this file, the only one that translates between them:

* **positions** count the tokens of the conversation, 0 to ``total - 1``: what masks, rotary
  embeddings and cached keys refer to. The call's own tokens are the last ``length`` of them:
  ``position = past + slot``.
* **slots** count the call's own tokens, 0 to ``length - 1``: what ``input_ids`` and the hidden
  states of an untouched layer are indexed by.
* **rows still in the sequence** count what a layer is given after a stage, 0 to ``n - 1``:
  :attr:`Cut.slots` maps them to slots. Prompts of a batch may keep different numbers of tokens;
  shorter ones then start with empty rows, marked -1. :attr:`Cut.local` maps them to the rows that
  the stage before had left.

Image tokens are the slots where :attr:`ForwardCall.is_image` holds; the k-th of a prompt is the
k-th of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.lvlm.families import Family
from vlmflow.truncation.masks import places_of_true, take

T = TypeVar("T")


@dataclass(eq=False)
class Cut:
    """What one stage leaves of a call's tokens."""

    layer: int  # The first that sees only these
    local: Tensor  # (B, n) int64: rows as they came to the stage; empty ones, -1, come first
    slots: Tensor  # (B, n) int64: their slots, -1 where empty
    ragged: bool  # Whether any row is empty
    kept: list[Tensor]  # Image tokens of each prompt that stay, in local indices
    removed: list[Tensor]  # Those that do not
    # Pictures of the kept and of the removed ones: none is merged into one of another
    pictures: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    sizes: Tensor | None = None  # (B, n): how many tokens each represents, once some were merged


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The rows of one prompt that came to a stage."""

    slots: Tensor  # (n,) int64: their slots, -1 where empty
    image: Tensor  # (P,) int64: which of them are image tokens
    text: Tensor  # (U,) int64: which are text after the first image token
    count: int  # How many rows are not empty


@dataclass(eq=False)
class ForwardCall:
    """Tokens of one call and its cuts so far."""

    arguments: Mapping[str, Any]  # What the model's forward was called with
    ids: Tensor  # (B, N) int64: the call's own tokens
    past: int  # Tokens of the conversation before them
    prompt: int  # How many of them are the prompt's; those after are candidates for its answer
    valid: Tensor | None  # (B, past + N) bool: False at padding; None: no padding
    is_image: Tensor  # (B, N) bool: image tokens
    images: list[int]  # How many of them each prompt has
    family: Family  # The model's, which knows where image tokens stand in their picture
    config: Any  # The model's
    cuts: list[Cut] = field(default_factory=list)  # What stages have left so far
    reached: set[int] = field(default_factory=set)  # Layers of the stages that had their say
    left: dict[int, int] = field(default_factory=dict)  # Of prompts: the first stage that cut them
    # Of layers that an exit signal compares with the next: their input, (B, n, width)
    noted: dict[int, Tensor] = field(default_factory=dict)
    # Of the layers that a ranking reads, until it has read them
    attention: dict[int, AttentionCall] = field(default_factory=dict)
    # For oracles: of each prompt the signal's map of every layer, (layers, N), 0 at other tokens
    maps: list[Tensor] | None = None
    # Of every layer that was cut: positions of the rows that it was given, (B, n)
    given: dict[int, Tensor] = field(default_factory=dict)
    # Such maps by their signal, for all truncations of the call
    measured: dict[Hashable, list[Tensor]] = field(default_factory=dict)
    _made: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        ids: object,
        arguments: Mapping[str, Any],
        image_tokens: tuple[int, ...],
        family: Family,
        config: Any,
        prompt_end: int | None = None,
        padding: Tensor | None = None,
    ) -> ForwardCall:
        """Read a call off what the model, or its language model, is called with.

        ``prompt_end`` is the position after the prompt, where a ``generate`` around the call says
        it: assisted decoding puts guesses after it, which decide about nothing. ``padding``, (B,
        positions) with 0 at padding, is its mask: for a static cache it hands others to the model.

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
        past = 0 if cache is None else int(cache.get_seq_length())
        length = ids.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = mask.to(ids.device) != 0
        elif padding is not None and padding.shape[1] >= past + length:
            rows = padding.repeat_interleave(len(ids) // len(padding), dim=0)  # a row per beam
            valid = rows[:, : past + length].to(ids.device) != 0
        prompt = length if prompt_end is None else min(max(prompt_end - past, 0), length)
        is_image, images = torch.zeros_like(ids, dtype=torch.bool), [0] * len(ids)
        if prompt > 1:  # a picture is never one token alone, and decoding must not wait for the GPU
            tokens = torch.tensor(image_tokens, device=ids.device)
            is_image[:, :prompt] = torch.isin(ids[:, :prompt], tokens)
            images = is_image.sum(1).tolist()
        return cls(arguments, ids, past, prompt, valid, is_image, images, family, config)

    def afresh(self) -> ForwardCall:
        """Return the same call before any stage has cut it."""
        return ForwardCall(
            self.arguments,
            self.ids,
            self.past,
            self.prompt,
            self.valid,
            self.is_image,
            self.images,
            self.family,
            self.config,
            measured=self.measured,
        )

    @property
    def length(self) -> int:
        """``N``, the number of the call's own tokens."""
        return self.ids.shape[1]

    @property
    def total(self) -> int:
        """Length of the conversation with this call."""
        return self.past + self.length

    @cached_property
    def has_images(self) -> bool:
        """Whether any prompt brings image tokens."""
        return any(self.images)

    @cached_property
    def is_text(self) -> Tensor:
        """(B, N) bool: tokens of the prompt that are neither image tokens nor padding."""
        real = True if self.valid is None else self.valid[:, -self.length :]
        return ~self.is_image & real & (self._all_slots < self.prompt)

    @cached_property
    def text_ids(self) -> list[list[int]]:
        """Ids of each prompt's :attr:`is_text`."""
        whole = torch.stack([self.ids, self.is_text.to(self.ids)]).tolist()
        return [
            [token for token, is_text in zip(ids, texts, strict=True) if is_text]
            for ids, texts in zip(*whole, strict=True)
        ]

    def cut_at(self, layer: int) -> Cut | None:
        """Return the last cut at or before a layer."""
        return next((cut for cut in reversed(self.cuts) if cut.layer <= layer), None)

    @cached_property
    def _all_slots(self) -> Tensor:
        return torch.arange(self.length, device=self.ids.device).expand(len(self.ids), -1)

    def slots(self, cut: Cut | None) -> Tensor:
        """Return the slots that are left after a cut, ``(B, n)``."""
        return self._all_slots if cut is None else cut.slots

    def rows_at(self, layer: int, device: torch.device) -> list[PromptRows]:
        """Say of each prompt what its rows at the input of a layer are, before the layer's cut."""
        slots = self.slots(self.cut_at(layer)).to(device)
        is_image = take(self.is_image, slots, -1).to(device) & (slots >= 0)
        is_text = take(self.is_text, slots, -1).to(device)
        # Empty rows, -1, lie before the first image token, too.
        first = self.is_image.int().argmax(1).to(device)
        is_text &= slots > first[:, None]
        masks = torch.stack([is_image, is_text, slots >= 0])
        images, texts, rows = masks.sum(-1).tolist()  # a GPU is waited for once, for all prompts
        return [
            PromptRows(
                slots[row],
                places_of_true(is_image[row], images[row]),
                places_of_true(is_text[row], texts[row]),
                rows[row],
            )
            for row in range(len(slots))
        ]

    def positions(self, cut: Cut | None) -> Tensor:
        """Return their positions in the conversation, ``(B, n)``, -1 where a row is empty."""

        def make() -> Tensor:
            slots = self.slots(cut)
            return torch.where(slots < 0, -1, slots + self.past)

        return self.once(("positions", id(cut)), cut, make)

    def places(self, row: int, slots: Tensor) -> Tensor | None:
        """Picture, row and column of some image tokens of a prompt; None: the family cannot say."""
        first, tokens = sum(self.images[:row]), self.images[row]
        places = self.family.places(first, tokens, self.arguments, self.config)
        if places is None:
            return None
        return torch.from_numpy(places)[self.image_numbers(row, slots).cpu()]

    def pictures(self, row: int) -> Tensor | None:
        """Picture of each image token of a prompt, (images,) int64; None: the family cannot say.

        Of a video, each group of frames that share tokens is a picture.
        """
        first, tokens = sum(self.images[:row]), self.images[row]
        numbers = self.family.picture_numbers(first, tokens, self.arguments, self.config)
        return None if numbers is None else torch.from_numpy(numbers).to(self.ids.device)

    def image_numbers(self, row: int, slots: Tensor) -> Tensor:
        """Say of image tokens of a prompt, by their slots, the how manieth of it each is."""
        number = self.is_image[row].cumsum(0) - 1
        return number[slots.to(number.device)]

    def note_attention(self, layer: int, attention: AttentionCall) -> None:
        """Keep what a ranking will read of a layer, until the next one has read it.

        A static cache has slots after the keys of the call's own tokens; nothing is in them yet.
        """
        length = attention.query.shape[2]
        if self.past == 0 and attention.key.shape[2] > length:
            mask = attention.mask
            attention = replace(
                attention,
                key=attention.key[:, :, :length],
                value=attention.value[:, :, :length],
                mask=None if mask is None else mask[..., :length],
            )
        self.attention[layer] = attention

    def once(self, key: Hashable, source: object, make: Callable[[], T]) -> T:
        """Make something the first time and give it again after that.

        All layers of a stage are called with the same masks and embeddings. ``source`` is held, so
        that an ``id`` in the key stays its own.
        """
        if key not in self._made:
            self._made[key] = (source, make())
        result: T = self._made[key][1]
        return result
