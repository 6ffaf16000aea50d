"""Flow map: what each image token sends on, over the layers before the cliff."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import Signal


@dataclass(frozen=True)
class FlowMap(Signal):
    """Saliency summed over layers 0..layers-1: of all text rows i, all ``I_l(i, j)``.

    A definition of vlmflow's own. Layers are summed with their magnitudes, so a layer that matters
    little adds little; where the cliff layer is known, ``layers`` leaves out those after it.
    Layers without attention add nothing.

    Parameters
    ----------
    layers : int, optional
        How many of the first layers to sum; None: all.
    """

    name = "flow_map"
    summary = "what each image token sends on: saliency summed over layers and all text"
    label = "flow map"
    source = "vlmflow's sum over layers of the saliency of Label Words are Anchors (EMNLP 2023)"
    reads = "saliency"
    summed = True

    layers: int | None = None

    def of_layer(self, seen: LayerView) -> Tensor:
        """Add up the rows; see :meth:`Signal.of_layer`."""
        return seen.saliency.sum(0)

    def summed_layers(self, layers: int) -> range:
        """Return the first ones; see :meth:`Signal.summed_layers`."""
        return range(layers if self.layers is None else self.layers)

    def check_model(self, layers: nn.ModuleList) -> None:
        """Refuse a number of layers that the model does not have."""
        count = len(layers)
        chosen = self.layers
        right = chosen is None or (isinstance(chosen, int) and not isinstance(chosen, bool))
        if not right or (chosen is not None and not 1 <= chosen <= count):
            raise InputError(
                f"flow_map(layers={chosen!r}), but the model has {count} decoder layers "
                f"(1..{count})"
            )
