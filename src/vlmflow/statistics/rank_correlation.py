"""Spearman's rank correlation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Rank correlation of two lists of n values (Spearman 1904); ties get their mean rank.

    Returns
    -------
    float or None
        Between -1 and 1; None where one of the lists is constant.
    """
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: FloatArray = (last - (counts - 1) / 2)[place]
    return mean
