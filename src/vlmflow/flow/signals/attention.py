"""Attention flow: what the position that predicts an answer token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import Signal


@dataclass(frozen=True)
class Attention(Signal):
    """Attention of the predicting position to every image token, mean over the heads.

    For the whole answer, the mean over its tokens.
    """

    name = "attention"
    summary = "attention from the position that predicts the answer token, mean over heads"
    label = "attention"
    source = "From Redundancy to Relevance (NAACL 2025), eq. 6-9"
    reads = "attention"

    def of_layer(self, seen: LayerView) -> Tensor:
        """Average over the rows; see :meth:`Signal.of_layer`."""
        return seen.attention.mean(0)
