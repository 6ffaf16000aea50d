"""Products of what the layers mix, folded layer by layer without any N x N matrix.

With ``M_l`` what layer ``l`` mixes, ``R_l = (kept + added M_l) R_{l-1}`` and ``R_{-1} = 1``. Maps
need the rows of ``R_l`` at the positions that predict the answer, at the image tokens' columns.
Both folds here are exact; which one is cheap depends on the order in which layers are shown.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import BUDGET, AttentionCall, mixed_rows
from vlmflow.flow.signals.signal import Signal


class ForwardFold:
    """Folds the layers as the forward pass shows them: the image tokens' columns of R, (N, P).

    All targets share it: what is mixed does not depend on them.
    """

    def __init__(self, name: str, signal: Signal, image: Tensor, real: Tensor) -> None:
        """``image``, (P,), and ``real``, (n,), are positions: image tokens, and all but padding."""
        self.name, self.signal, self.image, self.real = name, signal, image, real
        self._columns: Tensor | None = None

    def step(self, call: AttentionCall, sample: int) -> Tensor:
        """Put one more layer in front; returns (N, P), the image tokens' columns of R."""
        length, device = call.key.shape[2], call.query.device
        before = self._columns
        if before is None:
            before = torch.zeros(length, len(self.image), dtype=_wide(call), device=device)
            before[self.image.to(device), torch.arange(len(self.image), device=device)] = 1
        before = before.to(device)
        kept, added = self.signal.residual
        after = kept * before
        for rows in _row_chunks(self.real.to(device), length):
            after[rows] += added * (_mixed(self, call, sample, rows, None) @ before)
        self._columns = after
        return after


class BackwardFold:
    """Folds the layers as the backward pass shows them: one row of R for each layer, (L, N).

    ``e R_l`` is ``e (kept + added M_l) ... (kept + added M_0)``, a row that starts when layer ``l``
    is shown and is multiplied by every layer below. ``e`` is the mean over the positions that
    predict the target's tokens.
    """

    def __init__(self, name: str, signal: Signal, start: Tensor) -> None:
        """``start``, (N,), is e."""
        self.name, self.signal, self.start = name, signal, start
        self._rows: Tensor | None = None
        self.layers: list[int] = []  # Of the rows, the last layer first

    def step(self, layer: int, call: AttentionCall, gradient: Tensor, sample: int) -> None:
        """Start the row of a layer, and multiply all rows by it."""
        start = self.start[None].to(device=call.query.device, dtype=_wide(call))
        before = start if self._rows is None else torch.cat([self._rows.to(start.device), start])
        self.layers.append(layer)
        kept, added = self.signal.residual
        after = kept * before
        # What no row draws on so far adds nothing to it: positions after the target, padding.
        drawn = (before != 0).any(0).nonzero()[:, 0]
        for rows in _row_chunks(drawn, call.key.shape[2]):
            after += added * (before[:, rows] @ _mixed(self, call, sample, rows, gradient))
        self._rows = after

    def maps(self, image: Tensor) -> list[tuple[int, Tensor]]:
        """Give every layer's map, (P,), once the first layer has been shown."""
        if self._rows is None:
            return []
        at_image = self._rows[:, image.to(self._rows.device)]
        return list(zip(self.layers, at_image, strict=True))


def _mixed(
    fold: ForwardFold | BackwardFold,
    call: AttentionCall,
    sample: int,
    rows: Tensor,
    output_gradient: Tensor | None,
) -> Tensor:
    """Return rows of what a layer mixes, (R, N); refuse another shape of a user's own weights."""

    def weigh(attention: Tensor, gradient: Tensor | None) -> Tensor:
        weights = fold.signal.of_heads(attention, gradient)
        if not isinstance(weights, Tensor) or weights.shape != attention.shape:
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise InputError(
                f"signal {fold.name!r} gave {shape} where a weight for each pair of positions in "
                f"each head is needed; return a tensor of shape {tuple(attention.shape)} from "
                "of_heads"
            )
        return weights

    return mixed_rows(call, sample, rows, weigh, output_gradient)


def _wide(call: AttentionCall) -> torch.dtype:
    """At least float32, as rows of attention are."""
    return torch.promote_types(call.query.dtype, torch.float32)


def _row_chunks(rows: Tensor, length: int) -> tuple[Tensor, ...]:
    """Cut rows so that (R, N) of each stays within the budget."""
    return torch.split(rows, max(1, BUDGET // (4 * length)))
