"""Whether signals that cost one backward pass foretell the cliff layer: the paper's central claim.

The true cliff layer of a sample comes from its removal curve. Each signal foretells one of its own,
and is compared with the best constant guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.removal.cliff import cliff_layer, losses
from vlmflow.statistics.bootstrap import percentile_interval, resamples
from vlmflow.statistics.rank_correlation import spearman
from vlmflow.studies.cliff_layer.measurements import SIGNALS, Observed

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """How well one signal foretells the cliff layer of a sample.

    Parameters
    ----------
    signal : str
        One of :data:`SIGNALS`, or ``"constant"``: the median cliff of the calibration samples.
    threshold : float, optional
        What the signal may still sum up to behind its cliff, as a share; chosen on the calibration
        samples. None where there is nothing to choose.
    error, error_low, error_high : float
        Mean absolute error in layers on the test samples, with its bootstrap 95 % interval.
    rank, rank_low, rank_high : float, optional
        Spearman's rank correlation with the true cliff; None where either is constant.
    samples : int
        ``n``.
    """

    signal: str
    threshold: float | None
    error: float
    error_low: float
    error_high: float
    rank: float | None
    rank_low: float | None
    rank_high: float | None
    samples: int


def true_cliffs(observed: Sequence[Observed], tolerance: float) -> npt.NDArray[np.int64]:
    """Cliff layer of every sample with a curve; L where there is none."""
    found = []
    for one in observed:
        if one.curve is not None:
            layers = one.curve.layers
            layer = cliff_layer(losses(one.curve, "kl"), layers, tolerance)
            found.append(layers[-1] + 1 if layer is None else layer)
    return np.array(found, dtype=np.int64)


def foretold(signal: str, values: FloatArray, threshold: float) -> int:
    """Predict a cliff layer from one signal of one sample.

    Of attention share and saliency flow: the first K such that what the layers from K on hold is at
    most ``threshold`` of what all hold. Of convergence: the layer behind the most concentrated one.
    """
    if signal == "convergence":
        return int(values.argmax()) + 1
    rest = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    return int(np.argmax(rest <= threshold * rest[0]))


def predictions(
    calibration: Sequence[Observed],
    test: Sequence[Observed],
    tolerance: float,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> list[Prediction]:
    """Compare what cheap signals foretell with the true cliff layers of the test samples.

    Thresholds are chosen on the calibration samples, by the least mean absolute error. Intervals
    are bootstraps over test samples.

    Raises
    ------
    InputError
        If either has no sample with an answer.
    """
    known = [one for one in calibration if one.curve is not None]
    asked = [one for one in test if one.curve is not None]
    if not known or not asked:
        raise InputError("the model gave no answer to any sample, so there is nothing to foretell")
    goal, truth = true_cliffs(known, tolerance), true_cliffs(asked, tolerance)
    found = [_compare("constant", None, np.full(len(asked), np.median(goal)), truth, draws, seed)]
    for signal in SIGNALS:
        threshold = None
        if signal != "convergence":
            threshold = min(
                np.linspace(0.01, 0.99, 99),
                key=lambda share, signal=signal: np.abs(  # type: ignore[misc]
                    [foretold(signal, one.signals[signal], share) for one in known] - goal
                ).mean(),
            )
        guess = [foretold(signal, one.signals[signal], threshold or 0.0) for one in asked]
        found.append(_compare(signal, threshold, np.array(guess), truth, draws, seed))
    return found


def _compare(
    signal: str,
    threshold: float | None,
    guess: npt.NDArray[np.int64] | FloatArray,
    truth: npt.NDArray[np.int64],
    draws: int,
    seed: int,
) -> Prediction:
    errors, ranks = [], []
    for picked in resamples(len(truth), draws, seed):
        errors.append(np.abs(guess[picked] - truth[picked]).mean())
        ranks.append(spearman(guess[picked], truth[picked]))
    rank = spearman(guess, truth)
    defined = [drawn for drawn in ranks if drawn is not None]
    low, high = percentile_interval(errors)
    rank_low, rank_high = percentile_interval(defined) if defined else (None, None)
    return Prediction(
        signal=signal,
        threshold=None if threshold is None else float(threshold),
        error=float(np.abs(guess - truth).mean()),
        error_low=float(low),
        error_high=float(high),
        rank=rank,
        rank_low=None if rank is None or rank_low is None else float(rank_low),
        rank_high=None if rank is None or rank_high is None else float(rank_high),
        samples=len(truth),
    )
