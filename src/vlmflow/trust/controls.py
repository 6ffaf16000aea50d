"""Maps that know nothing of the model: what every map has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.errors import InputError

FloatArray = npt.NDArray[np.float64]

_WIDTH = 0.25
"""Standard deviation of the centre's bell, as a share of each side."""


def control_map(name: str, picture: Image.Image, seed: int = 0) -> FloatArray:
    """Paint a control over a picture's pixels: (height, width).

    Parameters
    ----------
    name : str
        One of :data:`CONTROLS`.
    picture : PIL.Image
        The picture that a map is compared on.
    seed : int
        Of ``"random"``.

    Raises
    ------
    InputError
        If there is no such control.
    """
    if name not in CONTROLS:
        raise InputError(f"control={name!r} is none of {', '.join(CONTROLS)}")
    return CONTROLS[name](picture, seed)


def _random(picture: Image.Image, seed: int) -> FloatArray:
    return np.random.default_rng(seed).random((picture.height, picture.width))


def _centre(picture: Image.Image, _seed: int) -> FloatArray:
    across, down = (
        np.exp(-0.5 * (((np.arange(n) + 0.5) / n - 0.5) / _WIDTH) ** 2)
        for n in (picture.width, picture.height)
    )
    bell: FloatArray = np.outer(down, across)
    return bell


def _uniform(picture: Image.Image, _seed: int) -> FloatArray:
    return np.ones((picture.height, picture.width))


def _edges(picture: Image.Image, _seed: int) -> FloatArray:
    """Magnitude of Sobel's gradient of the grey picture."""
    grey = np.pad(np.asarray(picture.convert("L"), dtype=np.float64), 1, mode="edge")
    smooth, slope = np.array([1.0, 2.0, 1.0]), np.array([-1.0, 0.0, 1.0])

    def filtered(down: FloatArray, across: FloatArray) -> FloatArray:
        rows = sum(down[i] * grey[i : grey.shape[0] - 2 + i] for i in range(3))
        columns = [across[j] * rows[:, j : grey.shape[1] - 2 + j] for j in range(3)]
        total: FloatArray = np.sum(columns, axis=0)
        return total

    return np.hypot(filtered(smooth, slope), filtered(slope, smooth))


CONTROLS: dict[str, Callable[[Image.Image, int], FloatArray]] = {
    "random": _random,
    "centre": _centre,
    "uniform": _uniform,
    "edges": _edges,
}
"""Random values, a bell over the centre, the same everywhere, and the picture's own edges."""
