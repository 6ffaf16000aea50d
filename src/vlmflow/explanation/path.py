"""Maps integrated along a path of image embeddings (Sundararajan et al. 2017, arXiv 1703.01365)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from vlmflow.explanation.smoothing import COPIES_AT_ONCE
from vlmflow.flow.measure import EMPTY, OK, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.sample_record import PathPoint
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt


def path_map(
    vlm: LVLM,
    prompt: Prompt,
    signal: Signal,
    options: ExplainOptions,
    *,
    on_pass: Callable[[], None] | None = None,
    at_once: int = COPIES_AT_ONCE,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Integrate a signal along its path: ``sum_k w_k map(x' + a_k (x - x'))``.

    Points and weights are Gauss and Legendre's on [0, 1], exact for polynomials of a degree below
    twice the number of points.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model, and a prompt with its answer.
    signal : Signal
        Its ``path`` says how many points and from where.
    options : ExplainOptions
        Target and memory.
    on_pass : callable, optional
        Called after each pass.
    at_once : int
        Points in one batch.

    Returns
    -------
    maps : (L or 1, G, P) float32
    flags : (L or 1, G) int8
        Empty where the map has no positive value.
    """
    path, name = signal.path, signal.known_as()
    assert path is not None
    nodes, weights = np.polynomial.legendre.leggauss(path.steps)
    shares, weights = (nodes + 1) / 2, weights / 2
    total: npt.NDArray[np.float64] | float = 0.0
    for first in range(0, path.steps, at_once):
        points = [PathPoint(path.baseline, float(s)) for s in shares[first : first + at_once]]
        inputs = {key: torch.cat([value] * len(points)) for key, value in prompt.inputs.items()}
        measurements = measure(
            vlm.model,
            vlm.decoder_layers,
            inputs,
            [prompt.layout] * len(points),
            options,
            signals={name: signal},
            segments=False,
            path=points,
            on_pass=on_pass,
        )
        for weight, measurement in zip(weights[first:], measurements, strict=False):
            total = total + weight * measurement.maps[name].astype(np.float64)
    maps = np.asarray(total, dtype=np.float32)
    return maps, np.where((maps > 0).any(-1), OK, EMPTY).astype(np.int8)
