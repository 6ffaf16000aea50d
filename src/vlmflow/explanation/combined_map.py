"""Maps that are made of other signals' maps, which the same passes show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.measure import EMPTY, NO_ATTENTION, OK, UNDEFINED
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal

Measured = tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]
"""A signal's maps, (L, G, P) or (1, G, P), and their flags, (L, G) or (1, G)."""


def with_parts(options: ExplainOptions) -> ExplainOptions:
    """Put the signals that others are made of in their place, each once."""
    wanted = options.named.values()
    if not any(signal.made_of for signal in wanted):
        return options
    plain = [signal for signal in wanted if not signal.made_of]
    parts = [part.signal for signal in wanted for part in signal.made_of]
    return replace(options, signals=list(dict.fromkeys([*plain, *parts])))


def combined_map(signal: Signal, measured: Mapping[Signal, Measured]) -> Measured:
    """Let a signal make its map of others': (1, G, P) and flags (1, G).

    Raises
    ------
    InputError
        If the signal gives something else than a value for each image token.
    ModelError
        If what it gives is not finite.
    """
    name, layers = signal.known_as(), []
    for part in signal.made_of:
        maps, flags = measured[part.signal]
        layer = part.place([flag not in (UNDEFINED, NO_ATTENTION) for flag in flags[:, 0]])
        layers.append(np.where((flags[layer] == OK)[:, None], maps[layer], 0))
    stacked = torch.from_numpy(np.stack(layers, axis=1))  # (G, K, P)
    rows = []
    for of_target in stacked:
        values = signal.of_maps(of_target)
        if not isinstance(values, Tensor) or values.shape != of_target.shape[1:]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"signal {name!r} gave {shape} where a value for each of {of_target.shape[1]} "
                "image tokens is needed; return a tensor of that shape from of_maps"
            )
        rows.append(values)
    values = torch.stack(rows)
    if not bool(values.isfinite().all()):
        raise ModelError(
            f"the {name} signal is not finite; make sure that of_maps never divides by zero"
        )
    combined = values.float().numpy()[None]
    return combined, np.where((combined > 0).any(-1), OK, EMPTY).astype(np.int8)
