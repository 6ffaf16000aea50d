"""The cliff layer: where a removal curve comes within a tolerance and stays within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.parameters import check_integer
from vlmflow.removal.answer_curve import AnswerCurve
from vlmflow.removal.curve import RemovalCurve
from vlmflow.statistics.bootstrap import percentile_interval, sample_draws

LOSSES = ("kl", "answer", "first", "logprob")
"""What a curve can lose: mean KL in nats, the answer (share of changed answers), its first token,
and the answer's log-probability in nats per answer."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cliff:
    """The cliff layer of a set of samples.

    Parameters
    ----------
    layer : int, optional
        The first layer from which the mean loss stays within the tolerance; None: no layer.
    low, high : int, optional
        Bootstrap 95 % interval over samples; None means "none", which counts as above all layers.
    loss, tolerance : str, float
        As given to :func:`cliff`.
    samples : int
        ``n``.
    without : float
        Share of bootstrap draws that have no cliff.
    """

    layer: int | None
    low: int | None
    high: int | None
    loss: str
    tolerance: float
    samples: int
    without: float


def losses(curve: AnswerCurve, loss: str) -> FloatArray:
    """Return what the change at each layer of a curve loses, ``(K,)``, 0 for nothing.

    Raises
    ------
    InputError
        If ``loss`` is none of :data:`LOSSES`.
    """
    if loss == "kl":
        return curve.mean_kl.astype(np.float64)
    if loss == "answer":
        return (~curve.same_answer).astype(np.float64)
    if loss == "first":
        return (~curve.same_first).astype(np.float64)
    if loss == "logprob":
        return np.maximum(-curve.logprob_change.astype(np.float64), 0.0)
    raise InputError(f"loss={loss!r} is unknown; there are {', '.join(LOSSES)}")


def cliff_layer(lost: npt.ArrayLike, layers: Sequence[int], tolerance: float) -> int | None:
    """Find the first layer from which on a loss stays within a tolerance.

    Parameters
    ----------
    lost : (K,) array-like
        Loss at every layer; NaN is never within.
    layers : sequence of K int
        The layers.
    tolerance : float
        Largest loss that is tolerated, from 0 on.

    Returns
    -------
    int or None
        None if the last layer's loss is too large already.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance={tolerance}, but a loss is tolerated from 0 on")
    within = np.asarray(lost, dtype=np.float64) <= tolerance
    if within.shape != (len(layers),):
        raise InputError(f"{len(layers)} layers need as many losses, not {within.shape}")
    outside = np.flatnonzero(~within)
    first = int(outside[-1]) + 1 if len(outside) else 0
    return layers[first] if first < len(layers) else None


def cliff(
    curves: RemovalCurve | Sequence[RemovalCurve],
    tolerance: float,
    *,
    loss: str = "kl",
    clusters: Sequence[str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Cliff:
    """Find the cliff layer of one sample, or of a data set's mean curve with its interval.

    Parameters
    ----------
    curves : RemovalCurve or sequence of RemovalCurve
        Of one model, with the same layers.
    tolerance : float
        Largest loss that is tolerated; 0.02 of ``"answer"`` is 2 % changed answers.
    loss : str
        One of :data:`LOSSES`.
    clusters : sequence of n str, optional
        What samples share (their picture), which are then drawn together; empty: nothing.
    draws : int
        Bootstrap draws over samples (Efron 1979).
    seed : int
        Of the draws.

    Raises
    ------
    InputError
        For no curves, curves of different layers, or impossible settings.
    """
    curves = [curves] if isinstance(curves, RemovalCurve) else list(curves)
    if not curves:
        raise InputError("a cliff layer needs at least one removal curve")
    if len({curve.layers for curve in curves}) > 1:
        raise InputError("curves of different layers have no common cliff layer")
    check_integer("draws", draws, least=1)
    check_integer("seed", seed)
    layers = curves[0].layers
    lost = np.stack([losses(curve, loss) for curve in curves])
    beyond = layers[-1] + 1
    drawn_layers = []
    for picked in sample_draws(len(lost), clusters, draws, seed):
        layer = cliff_layer(lost[picked].mean(0), layers, tolerance)
        drawn_layers.append(beyond if layer is None else layer)
    # Order statistics, not means of two layers: an interval's ends are layers, too.
    low, high = (int(end) for end in percentile_interval(drawn_layers, "inverted_cdf"))
    return Cliff(
        layer=cliff_layer(lost.mean(0), layers, tolerance),
        low=None if low == beyond else low,
        high=None if high == beyond else high,
        loss=loss,
        tolerance=tolerance,
        samples=len(curves),
        without=float(np.mean(np.array(drawn_layers) == beyond)),
    )
