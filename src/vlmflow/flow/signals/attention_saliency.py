"""Attention and saliency of all text, together, a third of the way through the layers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from vlmflow.flow.signals.combined import mean_of_scaled
from vlmflow.flow.signals.saliency import Saliency
from vlmflow.flow.signals.signal import Part, Signal
from vlmflow.flow.signals.text_attention import TextAttention

DEPTH = Fraction(1, 3)


@dataclass(frozen=True)
class AttentionSaliency(Signal):
    """``A / mean(A) + I / mean(I)``, halved: what all text reads, and what the answer rests on.

    ``A`` is :class:`~vlmflow.flow.signals.text_attention.TextAttention` and ``I``
    :class:`~vlmflow.flow.signals.saliency.Saliency`, both at layer ``L // 3`` of L (or the nearest
    one that has attention); means are over the image tokens. A definition of vlmflow's own, chosen
    among about forty on calibration samples of the drawn tasks (docs/faithfulness.md).
    """

    name = "attention_saliency"
    summary = "attention and saliency of all text, a third of the way through the layers"
    label = "attention + saliency"
    source = "sum of two maps, by vlmflow"
    reads = "maps"
    summed = True
    whole = True

    @property
    def made_of(self) -> tuple[Part, ...]:
        """Name both; see :attr:`Signal.made_of`."""
        return (Part(TextAttention(), DEPTH), Part(Saliency(), DEPTH))

    def of_maps(self, maps: Tensor) -> Tensor:
        """Add them up on one scale; see :meth:`Signal.of_maps`."""
        return mean_of_scaled(maps)
