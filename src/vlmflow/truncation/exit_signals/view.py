"""What an exit signal may read: one prompt at the input of a layer from which it might leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import AttentionCall, attention_rows


@dataclass(frozen=True, eq=False)
class ExitView:
    """The last token of one prompt, and what it looks at.

    ``n`` tokens, padding included; ``P`` of them image tokens, ``U`` text after the first of these.
    What a signal does not declare to read is refused.

    Parameters
    ----------
    name, reads : str, tuple of str
        The signal that looks, and what it declares to read.
    layer : int
        The layer from which image tokens would be gone, counted from 0.
    hidden : (n, width)
        Hidden states at its input.
    image, text : (P,), (U,) int64
        Image tokens, and text after the first of them: indices into ``hidden``, in order.
    """

    name: str
    reads: tuple[str, ...]
    layer: int
    hidden: Tensor
    image: Tensor
    text: Tensor
    _row: int  # Which prompt of the batch
    _before: Tensor | None  # (n, width): hidden states at the input of the layer before
    _attention: AttentionCall | None  # Of the layer before
    _lens: Any  # Maps hidden states (..., width) to logits (..., vocabulary)

    @property
    def last(self) -> Tensor:
        """The last token's state, at least float32: (width,)."""
        return _wide(self.hidden[self._last_index])

    @property
    def mean_text(self) -> Tensor:
        """Mean state of the text after the picture, at least float32: (width,)."""
        text = self.text if len(self.text) else self._last_index[None]
        return _wide(self.hidden[text]).mean(0)

    @property
    def step(self) -> Tensor:
        """What the layer before added to the last token's state: (width,)."""
        self._require("step")
        if self._before is None:
            raise InputError(f"exit signal {self.name!r} reads a step, and layer 0 follows none")
        # Of a model on several devices the layer before may have got its input on another one.
        before = self._before[self._last_index.to(self._before.device)].to(self.hidden.device)
        return self.last - _wide(before)

    @property
    def has_attention(self) -> bool:
        """Whether the layer before has attention: hybrid models have layers without."""
        return self._attention is not None

    @property
    def attention(self) -> Tensor:
        """Attention of the last token at the layer before, over all tokens: (heads, n).

        Without tokens of earlier turns, which a cache may hold.
        """
        call = self._attention_call()
        return self._row_of(call)[:, call.key.shape[2] - call.query.shape[2] :]

    @property
    def image_contribution(self) -> Tensor:
        """What image tokens give to the last token at the layer before: (heads, value width).

        ``sum_j A[h, last, j] v[h, j]`` over the image tokens.
        """
        call = self._attention_call()
        places = self.image + (call.key.shape[2] - call.query.shape[2])
        return _weighted(self._row_of(call)[:, places], call.value[self._row][:, places])

    @property
    def whole_contribution(self) -> Tensor:
        """The same sum over all tokens: (heads, value width)."""
        call = self._attention_call()
        return _weighted(self._row_of(call), call.value[self._row])

    @property
    def logits(self) -> Tensor:
        """The last token through the final norm and the output matrix: (vocabulary,).

        The logit lens (nostalgebraist 2020). What a model does to its logits afterwards (scaling, a
        soft cap) is left out.
        """
        self._require("logits")
        logits: Tensor = self._lens(self.hidden[self._last_index])
        return _wide(logits)

    @property
    def _last_index(self) -> Tensor:
        return torch.cat([self.image, self.text]).amax()

    def _row_of(self, call: AttentionCall) -> Tensor:
        return attention_rows(call, self._row, self._last_index[None])[:, 0]

    def _attention_call(self) -> AttentionCall:
        self._require("attention")
        if self._attention is None:
            raise InputError(
                f"layer {self.layer - 1} has no attention for exit signal {self.name!r} to read; "
                "choose another layer, or a signal that reads hidden states"
            )
        return self._attention

    def _require(self, source: str) -> None:
        if source not in self.reads:
            raise InputError(
                f"exit signal {self.name!r} looks at seen.{source} but declares "
                f"reads={self.reads!r}; add {source!r} to it"
            )


def _weighted(attention: Tensor, values: Tensor) -> Tensor:
    """Sum values (key heads, n, D) by the attention (heads, n) of their groups: (heads, D)."""
    grouped = attention.view(values.shape[0], -1, attention.shape[1])
    return (grouped @ _wide(values)).flatten(0, 1)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
