"""Intervals of shares, means and paired differences, for samples that may share pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.statistics.bootstrap import groups_of, percentile_interval, resamples

FloatArray = npt.NDArray[np.float64]

Z = 1.959964
"""97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); ``(0, 1)`` for no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + Z * Z / (2 * trials)
    spread = Z * math.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    scale = 1 + Z * Z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_estimate(
    scores: Sequence[float], clusters: Sequence[str] | None = None, *, draws: int, seed: int
) -> Estimate:
    """Estimate the mean of scores from 0 on, most of them at most 1.

    Wilson's interval (Wilson 1927) where every score is 0 or 1 and every sample stands alone;
    otherwise the percentile bootstrap, which draws whole clusters. Where draws cannot differ (one
    cluster, or clusters of one mean), Wilson's interval for as many samples as clusters stands in.

    Parameters
    ----------
    scores : sequence of n float
        At least one.
    clusters : sequence of n str, optional
        What samples share (:attr:`vlmflow.tasks.base.TaskSample.cluster`); empty: nothing.
    draws, seed : int
        Of the bootstrap.
    """
    values = np.asarray(scores, dtype=np.float64)
    groups = groups_of(len(values), clusters)
    mean, group_count = float(values.mean()), int(groups.max()) + 1
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    alone = group_count == len(values)
    if (alone and np.isin(values, (0.0, 1.0)).all()) or np.ptp(sums / counts) == 0:
        most = max(1.0, mean)  # CIDEr of a caption may be more than 1
        ends = wilson_interval(mean / most * group_count, group_count)
        return Estimate(mean, most * ends[0], most * ends[1])
    chosen = resamples(group_count, draws, seed)
    low, high = percentile_interval(sums[chosen].sum(1) / counts[chosen].sum(1))
    return Estimate(mean, float(low), float(high))


def paired_difference(
    scores: Sequence[float], reference: Sequence[float], clusters: Sequence[str] | None = None
) -> Estimate:
    """Estimate the mean of ``scores - reference`` over the same samples.

    Bonett and Price's adjusted Wald interval for paired proportions (2012, Biometrical Journal
    54:479): two more samples, one won and one lost, so that no difference in n samples does not
    pass for certainty. For scores of 0 and 1 it is exactly theirs; graded scores enter with their
    differences, and samples of one cluster are added up before squaring. ``value`` is the mean
    without the two samples. One cluster of several samples says nothing about others: its interval
    is everything.

    Parameters
    ----------
    scores, reference : sequence of n float
        At least one; the two further samples take them to lie mostly between 0 and 1.
    clusters : sequence of n str, optional
        What samples share.
    """
    gains = np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    centre, error = adjusted_difference(scores, reference, clusters)
    most = max(1.0, float(np.abs(gains).max()))
    low, high = max(-most, centre - Z * error), min(most, centre + Z * error)
    return Estimate(float(gains.mean()), low, high)


def adjusted_difference(
    scores: Sequence[float], reference: Sequence[float], clusters: Sequence[str] | None = None
) -> tuple[float, float]:
    """Centre and standard error of :func:`paired_difference`, with its two further samples.

    The error of several samples of a single cluster is infinite: they say nothing about others.
    """
    gains = np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    total = len(gains) + 2
    centre = float(gains.sum()) / total
    groups = groups_of(len(gains), clusters)
    if not groups.any() and len(gains) > 1:
        return centre, math.inf
    # Of a cluster: its gains minus as many times the centre.
    rest = np.bincount(groups, gains) - np.bincount(groups) * centre
    squares = float((rest**2).sum()) + (1 - centre) ** 2 + (-1 - centre) ** 2
    return centre, math.sqrt(squares) / total
