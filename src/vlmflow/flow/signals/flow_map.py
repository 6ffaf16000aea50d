"""Flow map: what each image token sends on, over the layers before the cliff."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError

FloatArray = npt.NDArray[np.float32]


def flow_map(saliency_maps: FloatArray, layers: int | None = None) -> FloatArray:
    """Sum over layers 0..layers-1 of the saliency maps: of all text rows i, all ``I_l(i, j)``.

    A definition of vlmflow's own. Layers are summed with their magnitudes, so a layer that matters
    little adds little; where the cliff layer is known, ``layers`` leaves out those after it.
    Layers without attention add nothing.

    Parameters
    ----------
    saliency_maps : (L, ..., P) float32
        Saliency map of every layer; 0 in layers without attention.
    layers : int, optional
        How many of the first layers to sum; None: all.

    Returns
    -------
    (..., P) float32

    Raises
    ------
    InputError
        If ``layers`` is not in 1..L.
    """
    check_flow_layers(layers, len(saliency_maps))
    total: FloatArray = saliency_maps[:layers].sum(axis=0, dtype=np.float32)
    return total


def check_flow_layers(layers: int | None, count: int) -> None:
    """Raise InputError for a number of layers that the model does not have."""
    if layers is not None and not 1 <= layers <= count:
        raise InputError(
            f"flow_layers={layers}, but the model has {count} decoder layers (1..{count})"
        )
