"""Relevancy: attention times its gradient, accumulated over the layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.signal import Signal


@dataclass(frozen=True)
class Relevancy(Signal):
    """``R <- R + E_h[(A * dA)^+] R``, with dA = d target / dA: the map after each layer.

    Chefer et al. 2021, arXiv 2103.15679, eq. 5-6, for self-attention alone. The map after the last
    layer is the paper's: the row of R at the position that predicts the token, at the image
    tokens; for the whole answer the mean of these rows, with the gradient of the whole answer.

    Gradients come last layer first, so it is folded backward: a row vector starts at each layer and
    is multiplied by every layer below, (L, N) per target in all. That gives the map after every
    layer exactly, where folding forward would need every layer's N x N gradients at once. It is not
    linear in the target: beside a pass per token, the whole answer has its own.
    """

    name = "relevancy"
    summary = "positive attention x gradient, accumulated over the layers up to each one"
    label = "relevancy"
    source = "Generic Attention-model Explainability (Chefer et al. 2021, arXiv 2103.15679)"
    reads = ("heads", "head_gradients")

    def of_heads(self, attention: Tensor, gradient: Tensor | None) -> Tensor:
        """Keep what speaks for the target; see :meth:`Signal.of_heads`."""
        assert gradient is not None
        return (attention * gradient).clamp_min(0)
