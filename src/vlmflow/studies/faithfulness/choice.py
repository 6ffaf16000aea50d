"""Choosing the layer of each signal on calibration samples, once, before anything is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings


@dataclass(frozen=True)
class Tried:
    """One calibration sample, per signal and layer tried."""

    cluster: str
    # Of every signal: "differences", insertion minus deletion; "defined", 1 where its map ranks
    # anything, else 0
    measured: Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class LayerChoice:
    """A layer that was tried for a signal, and whether it was chosen."""

    signal: str
    layer: int | None  # None: the signal has one map for all layers
    # Mean insertion minus deletion on the calibration samples with its bootstrap 95 % interval;
    # None where there was nothing to choose
    difference: float | None
    defined: float | None  # Share of these samples in which the map ranks anything
    low: float | None
    high: float | None
    chosen: bool


def layers_chosen(
    tried: Mapping[str, Sequence[int | None]],
    calibration: Sequence[Tried],
    settings: FaithfulnessSettings,
) -> list[LayerChoice]:
    """Choose the layer with the largest mean difference for every signal; the first of several.

    The first replacement's mean probability decides, whatever else is reported. A layer whose map
    ranks nothing in most samples is chosen only where that holds of all.
    """
    choices = []
    for signal, layers in tried.items():
        if len(layers) == 1:
            choices.append(LayerChoice(signal, layers[0], None, None, None, None, True))
            continue
        values, defined = (
            np.array([sample.measured[signal][what] for sample in calibration])
            for what in ("differences", "defined")
        )
        shares = defined.mean(0)
        clusters = [sample.cluster for sample in calibration]
        low, high = mean_interval(values, clusters, settings.draws, settings.seed)
        means = values.mean(0)
        usable = shares > 0.5
        best = int(np.where(usable if usable.any() else True, means, -np.inf).argmax())
        for place, layer in enumerate(layers):
            mean, share, start, end = (float(own[place]) for own in (means, shares, low, high))
            choices.append(LayerChoice(signal, layer, mean, share, start, end, place == best))
    return choices
