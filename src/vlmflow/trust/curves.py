"""Insertion and deletion: the score of an answer as its picture appears, and as it vanishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.result.map_trust import Curves, FloatArray
from vlmflow.trust.order import ranks_over, replayed, shown_after, token_ranks
from vlmflow.trust.replacement import background, partly_shown

Score = Callable[[Sequence[Image.Image]], FloatArray]
"""Gives each of some pictures its score: (n,)."""

STEPS = 64
"""Equally large steps, as EAGLE's protocol has them."""


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
        One of :data:`~vlmflow.trust.replacement.REPLACEMENTS`.
    steps : int
        How many, of equal area.
    seed : int
        Breaks ties.

    Raises
    ------
    InputError
        For a map that does not fit the picture or cannot be ranked, or an impossible setting.
    """
    check_steps(steps)
    shown = picture_steps([picture], [values], replacement=replacement, steps=steps, seed=seed)
    scores = np.asarray(score([pictures[0] for pictures in shown]), dtype=np.float64)
    return Curves(*both_ways(scores, steps))


def check_steps(steps: object) -> None:
    """Refuse a number of steps that makes no curve."""
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps={steps!r}, but a curve takes at least one")


def picture_steps(
    pictures: Sequence[Image.Image],
    maps: Sequence[npt.ArrayLike],
    *,
    replacement: str,
    steps: int,
    seed: int = 0,
    regions: int = 0,
) -> list[list[Image.Image]]:
    """Let pictures appear and vanish together, in the order of their maps.

    Parameters
    ----------
    pictures : sequence of n PIL.Image
        The originals.
    maps : sequence of n (height, width)
        Painted over their pixels, on one scale; NaN where no token looks.
    replacement : str
        One of :data:`~vlmflow.trust.replacement.REPLACEMENTS`.
    steps : int
        How many, of equal area.
    seed : int
        Breaks ties.
    regions : int
        Of so many rectangles along each side, whole ones come and go, by their mean; 0: pixels.

    Returns
    -------
    list of ``2 * steps`` lists of n PIL.Image
        For :func:`both_ways`: ``steps + 1`` that appear, from nothing to everything, and the
        ``steps - 1`` between them that vanish.

    Raises
    ------
    InputError
        For a map that does not fit its picture or cannot be ranked.
    """
    ranks = ranks_over([replayed(m, regions) if regions else m for m in maps], seed)
    pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
    hidden_by = [background(picture, replacement) for picture in pictures]
    for own, picture in zip(ranks, pictures, strict=True):
        if own.shape != (picture.height, picture.width):
            raise InputError(
                f"the map is painted over {own.shape[1]} x {own.shape[0]} pixels, but the picture "
                f"has {picture.width} x {picture.height}"
            )
    total = 1 + max(int(own.max()) for own in ranks)

    def shown(step: int, vanishing: bool) -> list[Image.Image]:
        parts = zip(pixels, hidden_by, ranks, strict=True)
        return [
            partly_shown(own, other, shown_after(rank, step, steps, total) != vanishing)
            for own, other, rank in parts
        ]

    appearing = [shown(step, False) for step in range(steps + 1)]
    return [*appearing, *(shown(step, True) for step in range(1, steps))]


def token_steps(values: npt.ArrayLike, steps: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Let image tokens appear and vanish in the order of a map, (P,): (2 * steps, P) bool.

    In the order of :func:`picture_steps`; True for tokens that are there.
    """
    ranks = token_ranks(values, seed)
    appearing = [shown_after(ranks, step, steps) for step in range(steps + 1)]
    return np.stack([*appearing, *(~shown for shown in appearing[1:-1])])


def both_ways(scores: FloatArray, steps: int) -> tuple[FloatArray, FloatArray]:
    """Split the scores of ``2 * steps`` stages into insertion and deletion: (steps + 1, ...) each.

    The ends of both curves are the same two stages: nothing and everything.
    """
    insertion, between = scores[: steps + 1], scores[steps + 1 :]
    return insertion, np.concatenate([insertion[-1:], between, insertion[:1]])
