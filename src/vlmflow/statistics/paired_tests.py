"""Tests of paired differences, one or many, for samples that may share pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlmflow.statistics.bootstrap import groups_of

ENUMERATED = 14
"""Up to so many clusters all signs are tried; for more, some are drawn."""


def sign_flip_p_value(
    differences: npt.ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Test whether paired differences have mean 0, by flipping their signs (Fisher 1935).

    Two-sided. Exact where, without an effect, a cluster's sum is as likely as its opposite.

    Parameters
    ----------
    differences : (n,) array-like
        One per sample.
    clusters : sequence of n str, optional
        What samples share: their signs flip together.
    draws, seed : int
        Of the flips, where there are too many to try all.

    Returns
    -------
    float
        Above 0, at most 1.
    """
    values = np.asarray(differences, dtype=np.float64)
    sums = np.bincount(groups_of(len(values), clusters), values)
    limit = abs(sums.sum()) * (1 - 1e-9)  # the sum itself counts, however it is rounded
    if len(sums) <= ENUMERATED:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= limit).mean())
    generator = np.random.default_rng(seed)
    flips = 2.0 * generator.integers(0, 2, size=(draws, len(sums))) - 1
    return float((1 + (np.abs(flips @ sums) >= limit).sum()) / (1 + draws))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for having made several tests (Holm 1979), whatever these share.

    Those below ``alpha`` can be called significant together: with probability ``1 - alpha`` none
    of them is so by chance.
    """
    count = len(p_values)
    adjusted, highest = [0.0] * count, 0.0
    for step, index in enumerate(sorted(range(count), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (count - step) * p_values[index]))
        adjusted[index] = highest
    return adjusted
