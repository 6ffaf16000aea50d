"""Attention rollout."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.signal import Signal


@dataclass(frozen=True)
class Rollout(Signal):
    """``R_l = (A_l / 2 + 1 / 2) R_{l-1}``, with A the mean over heads: the map after each layer.

    Abnar & Zuidema 2020, arXiv 2005.00928, section 3. The row of R at the position that predicts
    the token, at the image tokens; for the whole answer the mean over its tokens.

    Folded forward, from the first layer on, keeping the columns of the image tokens alone (N x P):
    exact, since ``(A R)[:, image] = A (R[:, image])``, and one fold serves every target. It takes
    the forward pass alone, and rebuilds all rows of attention once, some at a time.
    """

    name = "rollout"
    summary = "attention rollout: attention and residual stream multiplied up to each layer"
    label = "rollout"
    source = "Quantifying Attention Flow in Transformers (Abnar & Zuidema 2020, arXiv 2005.00928)"
    reads = "heads"
    residual = (0.5, 0.5)

    def of_heads(self, attention: Tensor, gradient: Tensor | None) -> Tensor:
        """Take attention as it is; see :meth:`Signal.of_heads`."""
        del gradient
        return attention
