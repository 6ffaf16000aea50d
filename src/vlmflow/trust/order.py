"""From a map over a picture to the order in which its pixels appear, or vanish."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_BLOCKS = 16
"""Ties are broken by blocks of a picture, so many along each side: single pixels would be noise."""


def pixel_ranks(values: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rank every pixel of a painted map: 0 for the one that comes first.

    Parameters
    ----------
    values : (height, width)
        The map, strongest first; NaN where no token looks. Equal values stand in an order that
        ``seed`` draws, block by block: a map that is constant ranks at random.
    seed : int
        From 0 on.

    Returns
    -------
    (height, width) int64
        Of the S pixels that tokens look at, 0 to S - 1. The others are spread evenly among them, in
        a drawn order: they tell the model nothing, and came they last, every order would seem
        better than chance.

    Raises
    ------
    InputError
        If the map has not two axes, is infinite somewhere, or NaN everywhere.
    """
    return ranks_over([values], seed)[0]


def ranks_over(
    maps: Sequence[npt.ArrayLike], seed: int = 0, frames: Sequence[int] | None = None
) -> list[npt.NDArray[np.int64]]:
    """Rank the pixels of several pictures' maps in one order; see :func:`pixel_ranks`.

    ``frames`` says how many frames of a video each map is painted over (None: each over a picture):
    a pixel that comes in two frames counts twice, so that ranks are numbers of pixels before it.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in maps]
    for array in arrays:
        if array.ndim != 2 or not array.size:
            raise InputError(
                f"a painted map has two axes, (height, width), not shape {array.shape}"
            )
    strengths = np.concatenate([array.ravel() for array in arrays])
    if np.isinf(strengths).any() or np.isnan(strengths).all():
        raise InputError("the map has no finite values to rank, or infinite ones among them")
    blocks = np.random.default_rng(seed).permutation(len(arrays) * _BLOCKS**2)
    drawn = []
    for number, (height, width) in enumerate(array.shape for array in arrays):
        rows = np.arange(height) * _BLOCKS // height
        columns = np.arange(width) * _BLOCKS // width
        own = number * _BLOCKS**2 + rows[:, None] * _BLOCKS + columns[None, :]
        drawn.append(blocks[own].ravel())
    ties = np.concatenate(drawn)
    unseen = np.isnan(strengths)
    order = np.lexsort((np.arange(strengths.size), ties, -strengths, unseen))
    seen = int((~unseen).sum())
    sizes = [array.size for array in arrays]
    counts = np.repeat([1] * len(arrays) if frames is None else list(frames), sizes)[order]
    ranks = np.empty(strengths.size, dtype=np.int64)
    before = np.cumsum(counts) - counts
    total = int(counts[:seen].sum())
    ranks[order[:seen]] = before[:seen]
    unseen_total = max(1, int(counts[seen:].sum()))
    ranks[order[seen:]] = (before[seen:] - total) * total // unseen_total
    ends = np.cumsum(sizes)[:-1]
    parts = np.split(ranks, ends)
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


def replayed(values: npt.ArrayLike, regions: int) -> FloatArray:
    """Give every pixel the mean of its region, of ``regions`` x ``regions`` rectangles.

    Pixels without a value, NaN, do not count; a region of nothing else has none.
    """
    array = np.asarray(values, dtype=np.float64)
    rows, columns = (np.arange(side) * regions // side for side in array.shape)
    region = rows[:, None] * regions + columns[None, :]
    seen = ~np.isnan(array)
    sums = np.bincount(region[seen], array[seen], regions**2)
    counts = np.bincount(region[seen], minlength=regions**2)
    means = np.full(regions**2, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    shown: FloatArray = means[region]
    return shown


def token_ranks(values: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rank image tokens, (P,): 0 for the strongest, NaN last, ties in an order ``seed`` draws."""
    strengths = np.asarray(values, dtype=np.float64)
    strengths = np.where(np.isnan(strengths), -np.inf, strengths)
    ties = np.random.default_rng(seed).permutation(strengths.size)
    ranks = np.empty(strengths.size, dtype=np.int64)
    ranks[np.lexsort((ties, -strengths))] = np.arange(strengths.size)
    return ranks


def shown_after(
    ranks: npt.NDArray[np.int64], step: int, steps: int, total: int | None = None
) -> BoolArray:
    """Say what has come after a step of equally large ones, of ``total`` ranks: as ``ranks``."""
    count = int(ranks.max()) + 1 if total is None else total
    first: BoolArray = ranks < round(count * step / steps)
    return first
