"""Text attention: what all the text after the picture attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import Signal


@dataclass(frozen=True)
class TextAttention(Signal):
    """Attention of every text position to every image token, mean over heads and positions.

    Of the text after the first image token, up to the position that predicts the target's last
    token: where :class:`~vlmflow.flow.signals.attention.Attention` asks what the answer looks at
    by itself, this includes what the question's words have read, which the answer gets from them.
    It takes no backward pass. The question's positions belong to every target, so that the maps of
    the single tokens of one answer differ little. A definition of vlmflow's own.
    """

    name = "text_attention"
    summary = "attention from all text after the picture, mean over positions and heads"
    label = "text attention"
    source = "mean over all text rows, by vlmflow"
    reads = "attention"
    rows = "text"

    def of_layer(self, seen: LayerView) -> Tensor:
        """Average over the rows; see :meth:`Signal.of_layer`."""
        return seen.attention.mean(0)
