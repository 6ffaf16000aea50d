"""From signals to chances: how likely an answer changes if a sample leaves, by what a signal says.

Everything here is fitted on one part of the calibration split; nothing of it is promised. What is
promised is tested on the other part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmflow.studies.certification.outcomes import FloatArray, Outcomes

FOLDS = 5
RIDGE = 1e-2
"""Strength of the penalty on a logistic slope, per sample of standardised values."""

PROBE_RIDGE = 1.0
"""The same for a probe's weights, of which there are many more than samples."""


def logistic(
    features: npt.ArrayLike, labels: npt.ArrayLike, ridge: float, *, steps: int = 50
) -> tuple[FloatArray, float]:
    """Fit ``P(label) = sigmoid(w . x + b)`` by Newton's method; the bias is not penalised.

    Parameters
    ----------
    features : (n, d)
        Standardised columns.
    labels : (n,)
        0 or 1.
    ridge : float
        Penalty ``n * ridge / 2 * |w|^2``.

    Returns
    -------
    w : (d,)
    b : float
    """
    x = np.asarray(features, np.float64)
    y = np.asarray(labels, np.float64)
    count, width = x.shape
    # Fewer samples than columns: the weights lie in the span of the samples, in which it is small.
    basis = np.eye(width)
    if width > count:
        _, _, basis = np.linalg.svd(x, full_matrices=False)
        x = x @ basis.T
    augmented = np.concatenate([x, np.ones((count, 1))], axis=1)
    penalty = np.diag([count * ridge] * x.shape[1] + [1e-6])
    weights = np.zeros(augmented.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(augmented @ weights, -30, 30)))
        gradient = augmented.T @ (chance - y) + penalty @ weights
        curvature = (augmented * (chance * (1 - chance))[:, None]).T @ augmented + penalty
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights[:-1] @ basis, float(weights[-1])


def probe_weights(states: npt.ArrayLike, changed: npt.ArrayLike) -> tuple[FloatArray, float]:
    """Fit a linear probe whose value is the larger, the safer leaving is: ``w . x + b``."""
    x = np.asarray(states, np.float64)
    centre, spread = x.mean(0), x.std(0) + 1e-6
    weights, bias = logistic((x - centre) / spread, changed, PROBE_RIDGE)
    weights = -weights / spread
    return weights, -bias - float(weights @ centre)


def probe_values(features: npt.ArrayLike, changed: npt.ArrayLike, folds: FloatArray) -> FloatArray:
    """Give every sample the value of a probe that was fitted without its fold: (n,).

    ``features`` (n, d), ``changed`` (n,), ``folds`` (n,).
    """
    x, y = np.asarray(features, np.float64), np.asarray(changed)
    values = np.zeros(len(x))
    for fold in np.unique(folds):
        inside = folds == fold
        weights, bias = probe_weights(x[~inside], y[~inside])
        values[inside] = x[inside] @ weights + bias
    return values


def thresholds_at(
    values: FloatArray, changed: npt.NDArray[np.bool_], chances: FloatArray
) -> FloatArray:
    """Give the least value of a signal at which the chance of a change is at most so much.

    Parameters
    ----------
    values, changed : (n,)
        One signal at one exit, and whose answer changes there.
    chances : (T,)
        Between 0 and 1.

    Returns
    -------
    (T,)
        Infinite where no value says it: the signal tells nothing here, points the wrong way, or
        cannot be read. Where no answer changes there is nothing to tell: by the rule of succession
        the chance is 1 / (n + 2) for everybody, and where that is tolerated any value will do.
    """
    if not np.isfinite(values).all():
        return np.full(len(chances), np.inf)
    if not changed.any():  # a slope would be rounding noise, and its sign a toss
        return np.where(chances >= 1 / (len(values) + 2), np.finfo(np.float64).min, np.inf)
    centre, spread = values.mean(), values.std()
    if spread <= 0:
        return np.full(len(chances), np.inf)
    slope, bias = logistic((values - centre)[:, None] / spread, changed, RIDGE)
    if slope[0] >= 0:
        return np.full(len(chances), np.inf)
    wanted = (np.log(chances) - np.log1p(-chances) - bias) / slope[0]
    thresholds: FloatArray = wanted * spread + centre
    return thresholds


def folds_of(outcomes: Outcomes) -> FloatArray:
    """Divide samples into folds that share no cluster: (n,)."""
    names = {name: place for place, name in enumerate(dict.fromkeys(outcomes.clusters))}
    return np.array([names[name] % FOLDS for name in outcomes.clusters], np.float64)


def area_under_curve(values: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Return the chance that a positive sample has the larger value (ties count half); else NaN.

    The area under the ROC curve, by ranks (Mann and Whitney 1947).
    """
    x, y = np.asarray(values, np.float64), np.asarray(positive, bool)
    above, below = x[y], np.sort(x[~y])
    if not len(above) or not len(below):
        return float("nan")
    smaller = np.searchsorted(below, above, "left")
    ties = np.searchsorted(below, above, "right") - smaller
    return float((smaller + ties / 2).sum() / (len(above) * len(below)))
