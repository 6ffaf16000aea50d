"""Flow map: what each image token sends on, over the layers before the cliff."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vlmflow.errors import InputError
from vlmflow.flow.signals.saliency import Saliency


@dataclass(frozen=True)
class FlowMap(Saliency):
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
    source = "sum over layers, by vlmflow, of the saliency of Label Words are Anchors (EMNLP 2023)"
    summed = True

    layers: int | None = None

    def summed_layers(self, layers: int) -> range:
        """Return the first ones; see :meth:`Signal.summed_layers`."""
        return range(layers if self.layers is None else self.layers)

    def check_model(self, layers: nn.ModuleList) -> None:
        """Refuse a number of layers that the model does not have."""
        count, chosen = len(layers), self.layers
        if chosen is not None and (type(chosen) is not int or not 1 <= chosen <= count):
            raise InputError(
                f"flow_map(layers={chosen!r}), but the model has {count} decoder layers "
                f"(1..{count})"
            )
