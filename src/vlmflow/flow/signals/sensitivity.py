"""Sensitivity: how much the answer could change with each image token's state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import LAYER_INPUT, Signal


@dataclass(frozen=True)
class Sensitivity(Signal):
    """``sum_l ||x_l|| * ||d target / d x_l||`` of every image token, over the first layers l.

    A definition of vlmflow's own: the most that gradient x input could come to, were the state
    ``x_l`` at the input of layer l turned into the gradient's direction (Cauchy and Schwarz). Signs
    cancel in gradient x input, and where a token's state points says little about what it would
    take to change the answer; lengths do neither. States are read before the picture has been read
    off them: in the first third of the layers.

    Parameters
    ----------
    layers : int, optional
        How many of the first layers to sum; None: the first third, rounded up.
    """

    name = "sensitivity"
    summary = "length of each image token's state x length of its gradient, over the first layers"
    label = "sensitivity"
    source = "bound of gradient x input, by vlmflow"
    reads = "features"
    summed = True

    layers: int | None = None

    @property
    def hook_point(self) -> str:
        """The layer's input; see :attr:`Signal.hook_point`."""
        return LAYER_INPUT

    def summed_layers(self, layers: int) -> range:
        """Return the first ones; see :meth:`Signal.summed_layers`."""
        return range(-(-layers // 3) if self.layers is None else self.layers)

    def check_model(self, layers: nn.ModuleList) -> None:
        """Refuse a number of layers that the model does not have."""
        count, chosen = len(layers), self.layers
        if chosen is not None and (type(chosen) is not int or not 1 <= chosen <= count):
            raise InputError(
                f"sensitivity(layers={chosen!r}), but the model has {count} decoder layers "
                f"(1..{count})"
            )

    def of_layer(self, seen: LayerView) -> Tensor:
        """Multiply the lengths; see :meth:`Signal.of_layer`."""
        lengths: Tensor = seen.features.norm(dim=1) * seen.gradient.norm(dim=1)
        return lengths
