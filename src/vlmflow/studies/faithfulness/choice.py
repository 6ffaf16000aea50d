"""Choosing the layer of each signal on calibration samples, once, before anything is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings


@dataclass(frozen=True)
class Tried:
    """Insertion minus deletion of one calibration sample, per signal and layer tried."""

    cluster: str
    differences: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class LayerChoice:
    """A layer that was tried for a signal, and whether it was chosen."""

    signal: str
    layer: int | None  # None: the signal has one map for all layers
    # Mean insertion minus deletion on the calibration samples with its bootstrap 95 % interval;
    # None where there was nothing to choose
    difference: float | None
    low: float | None
    high: float | None
    chosen: bool


def layers_chosen(
    tried: Mapping[str, Sequence[int | None]],
    calibration: Sequence[Tried],
    settings: FaithfulnessSettings,
) -> list[LayerChoice]:
    """Choose the layer with the largest mean difference for every signal; the first of several.

    The first replacement's mean probability decides, whatever else is reported.
    """
    choices = []
    for signal, layers in tried.items():
        if len(layers) == 1:
            choices.append(LayerChoice(signal, layers[0], None, None, None, True))
            continue
        values = np.array([sample.differences[signal] for sample in calibration])
        clusters = [sample.cluster for sample in calibration]
        low, high = mean_interval(values, clusters, settings.draws, settings.seed)
        means = values.mean(0)
        best = int(means.argmax())
        for place, layer in enumerate(layers):
            ends = float(means[place]), float(low[place]), float(high[place])
            choices.append(LayerChoice(signal, layer, *ends, chosen=place == best))
    return choices
