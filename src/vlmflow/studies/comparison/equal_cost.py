"""What random tokens score at the cost of something else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def scores_at_cost(
    costs: Sequence[float], scores: npt.ArrayLike, cost: float
) -> npt.NDArray[np.float64]:
    """Interpolate every sample's score at a cost, on straight lines between the measured ones.

    Beyond the ends the nearest measurement counts. Where a measured cost is lower than that of
    fewer tokens, which is noise, the two are taken to cost the higher.

    Parameters
    ----------
    costs : sequence of k float
        Of ever more tokens.
    scores : (k, n) array-like
        Of every sample, at each of them.
    cost : float
        Where the scores are wanted.

    Returns
    -------
    (n,) float64
    """
    rising = np.maximum.accumulate(np.asarray(costs, dtype=np.float64))
    table = np.asarray(scores, dtype=np.float64)
    after = int(np.searchsorted(rising, cost, side="right"))
    if after == 0 or after == len(rising):
        row: npt.NDArray[np.float64] = table[min(after, len(rising) - 1)]
        return row
    low, high = rising[after - 1], rising[after]
    weight = (cost - low) / (high - low)
    mixed: npt.NDArray[np.float64] = (1 - weight) * table[after - 1] + weight * table[after]
    return mixed
