"""Whether signals that cost one backward pass predict the cliff layer: the paper's central claim.

The true cliff layer of a sample comes from its removal curve. Each signal predicts one of its own,
and is compared with the best constant guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.removal.cliff import cliff_layer, losses
from vlmflow.statistics.bootstrap import percentile_interval, sample_draws
from vlmflow.statistics.rank_correlation import spearman
from vlmflow.studies.cliff_layer.measurements import SIGNALS, SampleMeasurement

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """How well one signal predicts the cliff layer of a sample."""

    # One of :data:`SIGNALS`, or ``"constant"``: the median cliff of the calibration samples
    signal: str
    # What the signal may still sum up to from its cliff on, as a share; chosen on the calibration
    # samples. None where there is nothing to choose.
    threshold: float | None
    # Mean absolute error in layers on the test samples, with its bootstrap 95 % interval
    error: float
    error_low: float
    error_high: float
    # Spearman's rank correlation with the true cliff; None where either is constant
    rank: float | None
    rank_low: float | None
    rank_high: float | None
    samples: int  # ``n``


def true_cliffs(
    measurements: Sequence[SampleMeasurement], tolerance: float
) -> npt.NDArray[np.int64]:
    """Cliff layer of every sample with a curve; L where there is none."""
    cliffs = []
    for measurement in measurements:
        if measurement.curve is not None:
            layers = measurement.curve.layers
            layer = cliff_layer(losses(measurement.curve, "kl"), layers, tolerance)
            cliffs.append(layers[-1] + 1 if layer is None else layer)
    return np.array(cliffs, dtype=np.int64)


def predicted_cliff(signal: str, values: FloatArray, threshold: float) -> int:
    """Predict a cliff layer from one signal of one sample.

    Of attention share and saliency flow: the first K such that what the layers from K on hold is at
    most ``threshold`` of what all hold. Of convergence: the layer after the most concentrated one.
    """
    if signal == "convergence":
        return int(values.argmax()) + 1
    rest = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    return int(np.argmax(rest <= threshold * rest[0]))


def predictions(
    calibration: Sequence[SampleMeasurement],
    test: Sequence[SampleMeasurement],
    tolerance: float,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> list[Prediction]:
    """Compare what cheap signals predict with the true cliff layers of the test samples.

    Thresholds are chosen on the calibration samples, by the least mean absolute error. Intervals
    are bootstraps over test samples, whose pictures are drawn whole.

    Raises
    ------
    InputError
        If either has no sample with an answer.
    """
    fitted = [measurement for measurement in calibration if measurement.curve is not None]
    tested = [measurement for measurement in test if measurement.curve is not None]
    if not fitted or not tested:
        raise InputError("the model gave no answer to any sample, so there is nothing to predict")
    goal, truth = true_cliffs(fitted, tolerance), true_cliffs(tested, tolerance)
    constant = np.full(len(tested), np.median(goal))
    clusters = [measurement.sample.cluster for measurement in tested]
    drawn = sample_draws(len(tested), clusters, draws, seed)
    compared = [_compare("constant", None, constant, truth, drawn)]
    for signal in SIGNALS:
        threshold = None
        if signal != "convergence":
            threshold = min(
                np.linspace(0.01, 0.99, 99),
                key=lambda share, signal=signal: np.abs(  # type: ignore[misc]
                    [predicted_cliff(signal, sample.signals[signal], share) for sample in fitted]
                    - goal
                ).mean(),
            )
        guess = [
            predicted_cliff(signal, sample.signals[signal], threshold or 0.0) for sample in tested
        ]
        compared.append(_compare(signal, threshold, np.array(guess), truth, drawn))
    return compared


def _compare(
    signal: str,
    threshold: float | None,
    guess: npt.NDArray[np.int64] | FloatArray,
    truth: npt.NDArray[np.int64],
    drawn: Sequence[npt.NDArray[np.int64]],
) -> Prediction:
    errors, ranks = [], []
    for numbers in drawn:
        errors.append(np.abs(guess[numbers] - truth[numbers]).mean())
        ranks.append(spearman(guess[numbers], truth[numbers]))
    rank = spearman(guess, truth)
    defined = [value for value in ranks if value is not None]
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
