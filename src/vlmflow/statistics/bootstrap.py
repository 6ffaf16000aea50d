"""The percentile bootstrap (Efron 1979): samples drawn with replacement, and their interval.

Every bootstrap of the package draws here, so that the same seed picks the same samples everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

VALUES_AT_ONCE = 2**18
"""Numbers of drawn samples that are laid out in memory together: 2 MB."""


def resamples(count: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``count`` of ``count`` samples with replacement: (draws, count) int64."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def sample_draws(
    count: int, clusters: Sequence[str] | None, draws: int, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Draw whole clusters of ``count`` samples with replacement: the samples of every draw.

    ``clusters`` is what samples share, empty for nothing; without any the draws are those of
    :func:`resamples`.
    """
    groups = groups_of(count, clusters)
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    picked = resamples(len(members), draws, seed)
    if len(members) == count:
        return list(picked)
    return [np.concatenate([members[group] for group in draw]) for draw in picked]


def groups_of(count: int, clusters: Sequence[str] | None) -> npt.NDArray[np.int64]:
    """Give every sample the number of its cluster; one without is its own."""
    if clusters is None:
        return np.arange(count)
    numbers: dict[tuple[str, int], int] = {}
    groups = [
        numbers.setdefault((cluster, -1 if cluster else place), len(numbers))
        for place, cluster in enumerate(clusters)
    ]
    return np.array(groups, dtype=np.int64)


def percentile_interval(
    statistics: npt.ArrayLike, method: Literal["linear", "inverted_cdf"] = "linear"
) -> tuple[FloatArray, FloatArray]:
    """Bound the middle 95 % of a statistic's draws: (draws, ...) -> two of (...).

    Parameters
    ----------
    statistics : (draws, ...) array-like
        The statistic of every draw.
    method : str
        How NumPy's ``quantile`` picks an end: between two draws (``"linear"``), or one of the
        draws (``"inverted_cdf"``), for statistics such as layers that have no values in between.
    """
    low, high = np.quantile(np.asarray(statistics), [0.025, 0.975], axis=0, method=method)
    return low, high


def mean_interval(
    values: FloatArray, clusters: Sequence[str] | None, draws: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Bootstrap 95 % interval of the mean over samples: (n, K) -> two of (K,)."""
    return percentile_interval(_means(values, sample_draws(len(values), clusters, draws, seed)))


def _means(values: FloatArray, drawn: list[npt.NDArray[np.int64]]) -> FloatArray:
    """Mean of the samples of every draw, to the last bit as one by one: (draws, K)."""
    if len({len(numbers) for numbers in drawn}) > 1:  # whole clusters, of different sizes
        return np.array([values[numbers].mean(0) for numbers in drawn])
    at_once = max(1, VALUES_AT_ONCE // max(1, values.size))
    return np.concatenate(
        [
            values[np.stack(drawn[start : start + at_once])].mean(1)
            for start in range(0, len(drawn), at_once)
        ]
    )
