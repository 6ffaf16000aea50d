"""Gradient times input, on the image embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import LAYER_INPUT, Signal


@dataclass(frozen=True)
class GradientInput(Signal):
    """``sum_k x_k d target / d x_k`` of every image token's embedding x: one map, signed.

    Shrikumar et al. 2017, arXiv 1605.01713, section 3. ``x`` is what the first decoder layer is
    given. Image features that a model adds again in later layers (DeepStack) are not part of it.
    """

    name = "gradient_input"
    summary = "gradient x input on the image embeddings, signed"
    label = "gradient x input"
    source = "Not Just a Black Box (Shrikumar et al. 2017, arXiv 1605.01713)"
    reads = "features"
    summed = True
    whole = True

    @property
    def hook_point(self) -> str:
        """The layer's input; see :attr:`Signal.hook_point`."""
        return LAYER_INPUT

    def summed_layers(self, layers: int) -> range:
        """Return the first layer alone; see :meth:`Signal.summed_layers`."""
        return range(min(1, layers))

    def of_layer(self, seen: LayerView) -> Tensor:
        """Multiply; see :meth:`Signal.of_layer`."""
        return (seen.features * seen.gradient).sum(1)
