"""Saliency flow: attention that the target depends on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import Signal


@dataclass(frozen=True)
class Saliency(Signal):
    """Sum of what each image token sends to all text rows: over rows i, ``I_l(i, j)``."""

    name = "saliency"
    summary = "|sum over heads of attention x its gradient|, from all text to each image token"
    label = "saliency"
    source = "Label Words are Anchors (EMNLP 2023)"
    reads = "saliency"

    def of_layer(self, seen: LayerView) -> Tensor:
        """Add up the rows; see :meth:`Signal.of_layer`."""
        return seen.saliency.sum(0)
