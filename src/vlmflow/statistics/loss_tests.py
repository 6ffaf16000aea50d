"""Showing that a loss is small: non-inferiority tests, for one candidate or for many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from vlmflow.statistics.bootstrap import groups_of
from vlmflow.statistics.intervals import adjusted_difference
from vlmflow.statistics.risk_control import binomial_p_value

ALPHA = 0.025
"""Level of a one-sided test: what lies below a two-sided 95 % interval."""


def loss_p_value(
    scores: Sequence[float],
    reference: Sequence[float],
    most: float,
    clusters: Sequence[str] | None = None,
) -> float:
    """Test whether the mean loss ``reference - scores`` is at most ``most``.

    The larger of two p-values: by the adjusted Wald interval of
    :func:`~vlmflow.statistics.intervals.paired_difference`, and by the exact binomial probability
    of so few losses (net of gains, per cluster) where each is whole. The first allows too much
    where losses are few and nothing is gained, which the second is exact for.

    Parameters
    ----------
    scores, reference : sequence of n float
        At least one.
    most : float
        Loss that is allowed, 0 to 1.
    clusters : sequence of n str, optional
        What samples share.

    Returns
    -------
    float
        Small where a larger loss would have shown.
    """
    centre, error = adjusted_difference(scores, reference, clusters)
    groups = int(groups_of(len(scores), clusters).max()) + 1
    wald = 0.5 * math.erfc((centre + most) / error / math.sqrt(2))
    net = max(0.0, float(np.sum(reference) - np.sum(scores)) * groups / len(scores))
    return max(wald, binomial_p_value(math.ceil(net - 1e-9), groups, most))


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Say which of several tests reject, so that with probability ``alpha`` none does wrongly.

    Holm (1979), step by step from the smallest; it holds whatever the tests share.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    passed = [p_values[index] <= alpha / (len(order) - step) for step, index in enumerate(order)]
    rejected = [False] * len(order)
    for index, _ in itertools.takewhile(lambda pair: pair[1], zip(order, passed, strict=True)):
        rejected[index] = True
    return rejected


def least_samples(most: float, tests: int, alpha: float = ALPHA) -> int | None:
    """Count the samples that a truncation without any loss needs to pass the first of ``tests``.

    None where no number is enough (``most=0``).
    """
    if most <= 0:
        return None
    samples = 1
    while loss_p_value([0.0] * samples, [0.0] * samples, most) > alpha / max(tests, 1):
        samples += 1
    return samples
