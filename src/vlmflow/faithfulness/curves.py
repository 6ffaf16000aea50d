"""Insertion and deletion: the score of an answer as its picture appears, and as it vanishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.faithfulness.order import pixel_ranks, shown_after
from vlmflow.faithfulness.replacement import background, partly_shown

FloatArray = npt.NDArray[np.float64]

Score = Callable[[Sequence[Image.Image]], FloatArray]
"""Gives each of some pictures its score: (n,)."""

STEPS = 64
"""Equally large steps, as EAGLE's protocol has them."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores over the share of the picture's area that has come, or gone.

    Parameters
    ----------
    insertion : (steps + 1,) float64
        From the replaced picture to the whole one, the map's strongest pixels first.
    deletion : (steps + 1,) float64
        From the whole picture to the replaced one, the same pixels first.
    """

    insertion: FloatArray
    deletion: FloatArray

    @property
    def areas(self) -> tuple[float, float]:
        """Areas under insertion (more is better) and deletion (less is better), by trapezoids."""
        insertion, deletion = (
            float((curve[1:] + curve[:-1]).mean() / 2) for curve in (self.insertion, self.deletion)
        )
        return insertion, deletion

    @property
    def difference(self) -> float:
        """Insertion minus deletion: 0 on average for a random order, whatever the model."""
        insertion, deletion = self.areas
        return insertion - deletion


def measure_curves(
    picture: Image.Image,
    values: npt.ArrayLike,
    score: Score,
    *,
    replacement: str = "black",
    steps: int = STEPS,
    seed: int = 0,
) -> Curves:
    """Insert and delete a picture in the order of a map.

    Parameters
    ----------
    picture : PIL.Image
        The original.
    values : (height, width)
        The map, painted over its pixels; NaN where no token looks.
    score : callable
        Gives pictures their scores. Called once, with ``2 * steps`` pictures.
    replacement : str
        One of :data:`~vlmflow.faithfulness.replacement.REPLACEMENTS`.
    steps : int
        How many, of equal area.
    seed : int
        Breaks ties.

    Raises
    ------
    InputError
        For a map that does not fit the picture or cannot be ranked, or an impossible setting.
    """
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps={steps!r}, but a curve takes at least one")
    ranks = pixel_ranks(values, seed)
    pixels, hidden_by = np.asarray(picture.convert("RGB")), background(picture, replacement)
    if ranks.shape != pixels.shape[:2]:
        raise InputError(
            f"the map is painted over {ranks.shape[1]} x {ranks.shape[0]} pixels, but the picture "
            f"has {picture.width} x {picture.height}"
        )
    shown = [shown_after(ranks, step, steps) for step in range(steps + 1)]
    # The ends of both curves are the same two pictures: the replaced one and the whole one.
    appearing = [partly_shown(pixels, hidden_by, mask) for mask in shown]
    vanishing = [partly_shown(pixels, hidden_by, ~mask) for mask in shown[1:-1]]
    scores = np.asarray(score([*appearing, *vanishing]), dtype=np.float64)
    insertion, between = scores[: steps + 1], scores[steps + 1 :]
    return Curves(insertion, np.concatenate([insertion[-1:], between, insertion[:1]]))
