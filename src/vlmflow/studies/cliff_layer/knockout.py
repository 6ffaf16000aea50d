"""What an attention knockout comes to over a task, beside removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlmflow.removal.curve import RemovalCurve
from vlmflow.removal.knockout import Knockout
from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference

ONWARDS, SINGLE = "knockout ", "knockout at "
"""What the columns of a knockout begin with in tables: from a layer on, and at it alone."""


@dataclass(frozen=True)
class KnockoutFigures:
    """Shares of answers that change, with 95 % intervals.

    Parameters
    ----------
    removed : Estimate
        Where all image tokens are removed before layer 0.
    cut_off : Estimate
        Where the answer's rows are cut off from them in all layers.
    difference : Estimate
        The first less the second, paired by sample.
    layer : int
        The one at which alone cutting off changes most answers.
    at_layer : Estimate
        What it changes there. It was chosen as the largest, so that it tends to be too high.
    """

    removed: Estimate
    cut_off: Estimate
    difference: Estimate
    layer: int
    at_layer: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in two sentences."""
        gap = (
            f"the difference, {100 * self.difference.value:.1f} points "
            f"({100 * self.difference.low:.1f} to {100 * self.difference.high:.1f}), reaches the "
            "answer by way of the words between"
        )
        if self.difference.low <= 0:
            gap = "that the answer gets anything by way of the words between is not shown"
        single = f"No single layer's cut changes an answer: {_percent(self.at_layer)} at most."
        if self.at_layer.value > 0:
            single = (
                f"Of single layers, a cut at layer {self.layer} changes most: "
                f"{_percent(self.at_layer)}."
            )
        return (
            f"Without the picture {_percent(self.removed)} of the answers change; where only the "
            f"rows that predict the answer never look at it, {_percent(self.cut_off)}: {gap}. "
            f"{single}"
        )


def knockout_figures(
    curves: Sequence[RemovalCurve],
    knockouts: Sequence[Knockout],
    clusters: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> KnockoutFigures:
    """Compare the knockouts of n samples with their removal curves, of which all have layer 0.

    ``clusters`` is what samples share; ``draws`` and ``seed`` are those of bootstraps.
    """
    removed, cut_off = (
        [float(not curve.same_answer[0]) for curve in own]
        for own in (curves, [knockout.onwards for knockout in knockouts])
    )
    single = np.stack([~knockout.single.same_answer for knockout in knockouts]).astype(float)
    most = int(single.mean(0).argmax())
    return KnockoutFigures(
        mean_estimate(removed, clusters, draws=draws, seed=seed),
        mean_estimate(cut_off, clusters, draws=draws, seed=seed),
        paired_difference(removed, cut_off, clusters),
        curves[0].layers[most],
        mean_estimate(single[:, most].tolist(), clusters, draws=draws, seed=seed),
    )


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
