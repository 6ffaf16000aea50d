"""From a map over a picture to the order in which its pixels appear, or vanish."""

from __future__ import annotations

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
        The map, strongest first; NaN where no token looks, which comes last. Equal values stand in
        an order that ``seed`` draws, block by block: a map that is constant ranks at random.
    seed : int
        From 0 on.

    Returns
    -------
    (height, width) int64

    Raises
    ------
    InputError
        If the map has not two axes, is infinite somewhere, or NaN everywhere.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"a painted map has two axes, (height, width), not shape {array.shape}")
    if np.isinf(array).any() or np.isnan(array).all():
        raise InputError("the map has no finite values to rank, or infinite ones among them")
    height, width = array.shape
    rows = np.arange(height) * _BLOCKS // height
    columns = np.arange(width) * _BLOCKS // width
    blocks = np.random.default_rng(seed).permutation(_BLOCKS**2)
    ties = blocks[rows[:, None] * _BLOCKS + columns[None, :]]
    strength = np.where(np.isnan(array), -np.inf, array)
    order = np.lexsort((np.arange(array.size), ties.ravel(), -strength.ravel()))
    ranks = np.empty(array.size, dtype=np.int64)
    ranks[order] = np.arange(array.size)
    return ranks.reshape(array.shape)


def shown_after(ranks: npt.NDArray[np.int64], step: int, steps: int) -> BoolArray:
    """Say which pixels have come after a step of equally large ones: (height, width) bool."""
    first: BoolArray = ranks < round(ranks.size * step / steps)
    return first
