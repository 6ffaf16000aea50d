"""Regions: image tokens cut into groups by what they show, and their neighbours in a grid."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from vlmflow.lvlm.grids import ImageGrid
from vlmflow.lvlm.layout import TokenLayout

IntArray = npt.NDArray[np.int64]


def regions_of(layout: TokenLayout, count: int) -> IntArray:
    """Cut the image tokens into about ``count`` regions.

    Every picture (or group of a video's frames) is cut into the same number of cells of equal
    area, as square as they can be; the tokens whose boxes' centres lie in a cell are a region, be
    they of tiles or of a thumbnail. A token without a place of its own (the end of a row) goes with
    the one before it. Where there are more pictures than regions, pictures that follow each other
    are together; where no token has a place, stretches of the sequence are regions.

    Returns
    -------
    (P,) int64
        The region of each image token, counted from 0 without gaps.
    """
    positions = layout.image_positions
    regions = np.full(positions.size, -1, dtype=np.int64)
    pictures = max(1, len(layout.image_sizes))
    cells = max(1, count // pictures)
    for grid in layout.grids:
        if not isinstance(grid, ImageGrid):
            continue
        width, height = layout.image_sizes[grid.image]
        rows, columns = _cells(cells, width, height)
        boxes = grid.boxes.reshape(-1, 4)
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        # Boxes stick out of a picture that was padded.
        row = np.clip(np.floor(y / height * rows), 0, rows - 1).astype(np.int64)
        column = np.clip(np.floor(x / width * columns), 0, columns - 1).astype(np.int64)
        first = grid.image * cells if pictures <= count else grid.image * count // pictures
        regions[np.searchsorted(positions, grid.positions.ravel())] = first + row * columns + column
    if (regions < 0).all():
        regions = np.arange(positions.size) * min(count, positions.size) // max(1, positions.size)
    # The token before it, or the first that has a region.
    placed = np.flatnonzero(regions >= 0)
    before = np.maximum.accumulate(np.where(regions >= 0, np.arange(regions.size), -1))
    regions = regions[np.where(before >= 0, before, placed[0] if placed.size else 0)]
    return np.unique(regions, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _cells(count: int, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of ``count`` cells or a few less, as square as they can be."""

    def oblong(rows: int) -> float:
        columns = count // rows
        # A share of cells left out counts twice as much as cells that much longer than wide.
        longer = abs(math.log(width / columns / (height / rows)))
        return longer + 2 * math.log(count / (rows * columns))

    rows = min(range(1, count + 1), key=oblong)
    return rows, count // rows


def neighbourhoods(layout: TokenLayout, window: int) -> list[tuple[IntArray, IntArray]]:
    """List, for every grid, its image tokens and those around each of them.

    Returns
    -------
    list of ((n,) int64, (n, window * window) int64)
        Indices of image tokens. Beyond an edge, the edge repeats.
    """
    reach = window // 2
    around_tokens = []
    for grid in layout.grids:
        if not isinstance(grid, ImageGrid):
            continue
        tokens = np.searchsorted(layout.image_positions, grid.positions)
        padded = np.pad(tokens, reach, mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
        around_tokens.append((tokens.ravel(), around.reshape(tokens.size, window * window).copy()))
    return around_tokens
