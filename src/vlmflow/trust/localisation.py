"""Whether a map lies where the answer is to be found, for pictures whose box or mask is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import Grid

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]

HIT, MISS, TIE, EMPTY = RESULTS = ("hit", "miss", "tie", "empty")


@dataclass(frozen=True)
class TamScores:
    """TAM's figures of one map (arXiv 2506.23270); None where the answer has no such words."""

    object_iou: float | None
    function_iou: float | None


def cells_of(
    grids: Sequence[Grid], values: FloatArray, positions: npt.NDArray[np.int64]
) -> FloatArray:
    """Return the values of all boxes of all grids, one grid after the other: (C,).

    ``values``, (P,), are those of the image tokens at ``positions``, (P,).
    """
    return np.concatenate([grid.values(values, positions).ravel() for grid in grids])


def cells_inside(grids: Sequence[Grid], box: Box) -> BoolArray:
    """Say which boxes of all grids lie in a region of the first picture: (C,) bool.

    Those whose centre lies in it, and those that hold its centre: a small object has a place, too.
    """
    left, top, right, bottom = box
    across, down = (left + right) / 2, (top + bottom) / 2
    parts = []
    for grid in grids:
        x0, y0, x1, y1 = grid.boxes.reshape(-1, 4).T
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        centred = (left <= x) & (x < right) & (top <= y) & (y < bottom)
        holds = (x0 <= across) & (across < x1) & (y0 <= down) & (down < y1)
        parts.append((centred | holds) & (grid.image == 0))
    return np.concatenate(parts)


def pixels_inside(box: Box, size: tuple[int, int]) -> BoolArray:
    """Return the mask of a box over a picture of (width, height): the pixels centred in it.

    At least the pixel that holds the box's centre.
    """
    left, top, right, bottom = box
    width, height = size
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    mask = np.outer((top <= y) & (y < bottom), (left <= x) & (x < right))
    row, column = int((top + bottom) / 2), int((left + right) / 2)
    mask[min(max(row, 0), height - 1), min(max(column, 0), width - 1)] = True
    return mask


def pointing(values: npt.ArrayLike, inside: BoolArray) -> str:
    """Play the strict pointing game: say whether the single highest value lies inside.

    Parameters
    ----------
    values : (C,) or (height, width)
        The map, of cells or painted; NaN where no token looks.
    inside : bool, as large
        Where the answer is to be found.

    Returns
    -------
    str
        ``"hit"``, ``"miss"``, ``"tie"`` (the highest value stands inside and outside, so that it
        points nowhere) or ``"empty"`` (no positive value). All but the first are misses; they are
        told apart to be counted.
    """
    array = _checked(values, inside)
    peak = np.nanmax(array, initial=0.0)
    if not peak > 0:
        return EMPTY
    highest = inside[array == peak]
    if highest.all():
        return HIT
    return TIE if highest.any() else MISS


def energy_inside(values: npt.ArrayLike, mask: BoolArray) -> float | None:
    """Return the share of a map's positive values inside a mask; None without any."""
    array = np.maximum(np.nan_to_num(_checked(values, mask)), 0)
    total = array.sum()
    return float(array[mask].sum() / total) if total > 0 else None


def intersection_over_union(values: npt.ArrayLike, mask: BoolArray) -> float:
    """IoU of a mask with a map that is cut in two by Otsu's threshold.

    A constant map has no threshold and marks nothing.
    """
    array = np.maximum(np.nan_to_num(_checked(values, mask)), 0)
    marked = array > otsu(array)
    return float((marked & mask).sum() / (marked | mask).sum())


def tam_scores(
    object_words: Sequence[Sequence[FloatArray]],
    function_words: Sequence[Sequence[FloatArray]],
    mask: BoolArray,
) -> TamScores:
    """Score the maps of an answer's words, as TAM does (arXiv 2506.23270, eq. 8 and 9).

    Obj-IoU: the IoU of every object word's map with the mask, of the best of the word's tokens.
    Func-IoU: the share of pixels at which the map of a function word stays below the mean threshold
    of the object words; such a word should mark nothing. Both are means over words.

    Parameters
    ----------
    object_words, function_words : sequence of sequence of (height, width)
        Of every word the painted maps of its tokens, all on one scale.
    mask : (height, width) bool
        Where the object is.
    """
    if not object_words:
        return TamScores(None, None)
    iou = np.mean([max(intersection_over_union(m, mask) for m in word) for word in object_words])
    limits = [
        max(otsu(np.maximum(np.nan_to_num(values), 0)) for values in word) for word in object_words
    ]
    limits = [limit for limit in limits if np.isfinite(limit)]
    if not function_words or not limits:
        return TamScores(float(iou), None)
    limit = np.mean(limits)
    below = [
        np.mean([(np.maximum(np.nan_to_num(values), 0) < limit).mean() for values in word])
        for word in function_words
    ]
    return TamScores(float(iou), float(np.mean(below)))


def otsu(values: FloatArray, bins: int = 256) -> float:
    """Return the threshold that separates values into two classes best (Otsu, 1979).

    Infinity for values that are all the same.
    """
    if values.min() == values.max():
        return float("inf")
    counts, edges = np.histogram(values, bins)
    middles = (edges[1:] + edges[:-1]) / 2
    below, sums = counts.cumsum()[:-1], (counts * middles).cumsum()
    above = values.size - below
    separation = below * above * (sums[:-1] / np.maximum(below, 1)
                                  - (sums[-1] - sums[:-1]) / np.maximum(above, 1)) ** 2  # fmt: skip
    return float(edges[1:-1][separation.argmax()])


def _checked(values: npt.ArrayLike, mask: BoolArray) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != mask.shape or mask.dtype != np.bool_:
        raise InputError(
            f"a mask must be boolean and as large as the map {array.shape}, not {mask.dtype} "
            f"{mask.shape}"
        )
    if not mask.any():
        raise InputError("the mask is empty, so that no map could lie in it")
    return array
