"""A picture that is seen in several grids of tokens, cut into the cells of all their edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.lvlm.grids import FloatArray, Grid

_SAME = 1e-6  # pixels; edges of two grids that differ by rounding alone are one


@dataclass(frozen=True)
class CombinedCells:
    """Where the boxes of several grids overlap, without a value per pixel.

    No box ends inside a cell, so each grid has at most one token over it, which covers all of it:
    the mean by area of :func:`vlmflow.lvlm.geometry.paint` is one value per cell, the plain mean of
    these tokens.
    """

    # (columns + 1,) float64: Left and right edges of the cells, in the original picture's pixels
    x: FloatArray
    y: FloatArray  # (rows + 1,) float64: Upper and lower ones
    # (grids, columns) int32: Which column of each grid lies over a column of cells; -1: none
    grid_columns: npt.NDArray[np.int32]
    # (grids, rows) int32: Which row lies over a row of cells; -1: none
    grid_rows: npt.NDArray[np.int32]


def combined_cells(grids: Sequence[Grid], size: tuple[int, int]) -> CombinedCells:
    """Cut a picture of ``size`` (width, height) along the edges of all boxes over it.

    What sticks out of the picture is cut off.
    """
    x, grid_columns = _cut([grid.x_edges for grid in grids], size[0])
    y, grid_rows = _cut([grid.y_edges for grid in grids], size[1])
    return CombinedCells(x, y, grid_columns, grid_rows)


def _cut(edges: Sequence[FloatArray], length: int) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Cut one axis: where, and which interval of each grid lies over every piece."""
    marks = np.unique(np.clip(np.concatenate([pairs.ravel() for pairs in edges]), 0, length))
    cuts: FloatArray = marks[np.diff(marks, prepend=-np.inf) > _SAME]
    middles = (cuts[:-1] + cuts[1:]) / 2
    over = np.full((len(edges), middles.size), -1, dtype=np.int32)
    for number, pairs in enumerate(edges):
        inside = (pairs[:, :1] <= middles) & (middles < pairs[:, 1:])
        over[number, inside.any(axis=0)] = inside.argmax(axis=0)[inside.any(axis=0)]
    return cuts, over
