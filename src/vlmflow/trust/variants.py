"""What the curves of an answer's tokens come to: four scores, each over the same pictures."""

from __future__ import annotations

import numpy as np

from vlmflow.result.map_trust import Curves, FloatArray

PROBABILITY, LOGPROB, NEEDED, NORMALISED = SCORES = (
    *("probability", "logprob"),
    *("needed", "normalised"),
)
"""Mean probability and mean log-probability of the answer's tokens; mean probability of those that
need the picture; mean probability where the replaced picture counts 0 and the whole one 1."""

NEED = 0.2
"""How much a token's probability, or the answer's mean, must fall without the picture."""


def needing(insertion: FloatArray) -> np.ndarray:
    """Say which tokens need the picture, as EAGLE's sensitive words do: (steps + 1, T) -> (T,).

    Those whose probability falls by more than :data:`NEED` from the whole picture to none.
    """
    falls: np.ndarray = np.exp(insertion[-1]) - np.exp(insertion[0]) > NEED
    return falls


def token_means(insertion: FloatArray, deletion: FloatArray) -> FloatArray:
    """Reduce log-probabilities of T tokens to the first three scores.

    Parameters
    ----------
    insertion, deletion : (steps + 1, T)
        From no picture to all of it, and back.

    Returns
    -------
    (3, 2, steps + 1) float64
        Scores in the order of :data:`SCORES`, insertion and deletion; NaN where no token needs the
        picture.
    """
    both = np.stack([insertion, deletion])
    chances = np.exp(both)
    needed = needing(insertion)
    own = chances[..., needed].mean(-1) if needed.any() else np.full(both.shape[:2], np.nan)
    return np.stack([chances.mean(-1), both.mean(-1), own])


def curves_of(score: str, means: FloatArray) -> Curves | None:
    """Return the curves of one score from what :func:`token_means` gave; None where it has none.

    The normalised score has none where the whole picture adds less than :data:`NEED` to the mean
    probability: a small difference would be blown up.
    """
    if score == NORMALISED:
        insertion, deletion = means[0]
        gain = insertion[-1] - insertion[0]
        if gain < NEED:
            return None
        return Curves((insertion - insertion[0]) / gain, (deletion - insertion[0]) / gain)
    insertion, deletion = means[SCORES.index(score)]
    return None if np.isnan(insertion).any() else Curves(insertion, deletion)
