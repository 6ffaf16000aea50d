"""Where in a picture a map lies: the smallest box that holds half of it, and its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.lvlm.grids import Grid
from vlmflow.lvlm.layout import TokenLayout

FloatArray = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

_LINES = 48
"""Most lines at which a box may begin or end, along one side."""

_PLACES = (
    ("the upper left", "the top", "the upper right"),
    ("the left", "the middle", "the right"),
    ("the lower left", "the bottom", "the lower right"),
)


@dataclass(frozen=True)
class Reading:
    """A part of a picture and how much of a map lies in it.

    Parameters
    ----------
    image : int
        Which picture.
    box : tuple of 4 float
        ``x0, y0, x1, y1`` in the picture's pixels.
    mass : float
        Share of the whole map, that of other pictures included.
    area : float
        Share of the picture.
    """

    image: int
    box: Box
    mass: float
    area: float

    def place(self, layout: TokenLayout) -> str:
        """Name the ninth of the picture that the middle of the box lies in."""
        width, height = layout.image_sizes[self.image]
        column = int(3 * (self.box[0] + self.box[2]) / 2 / width)
        row = int(3 * (self.box[1] + self.box[3]) / 2 / height)
        return _PLACES[min(max(row, 0), 2)][min(max(column, 0), 2)]


def smallest_box(values: npt.ArrayLike, layout: TokenLayout, share: float = 0.5) -> Reading | None:
    """Find the smallest box that holds a share of a map's mass, in the picture with most of it.

    ``values``, (P,), are those of all image tokens; those that are not positive have no mass, and
    tokens without a place lie in no box. None where no box holds so much.
    """
    masses = np.maximum(np.asarray(values, dtype=np.float64), 0)
    total = masses.sum()
    if not total > 0:
        return None
    best: Reading | None = None
    for image in range(len(layout.image_sizes)):
        raster = _Raster(image, masses / total, layout)
        reading = raster.smallest(share)
        if reading is not None and (best is None or reading.area < best.area):
            best = reading
    return best


def mass_in(values: npt.ArrayLike, layout: TokenLayout, box: Box, image: int = 0) -> Reading:
    """Say how much of a map's mass lies in a box of a picture; tokens count by their overlap."""
    masses = np.maximum(np.asarray(values, dtype=np.float64), 0)
    total = masses.sum()
    shares = masses / total if total > 0 else masses
    width, height = layout.image_sizes[image]
    inside = sum(
        float(_covered(grid.y_edges, box[1::2]) @ density @ _covered(grid.x_edges, box[0::2]))
        for grid, density in _densities(image, shares, layout)
    )
    area = float((box[2] - box[0]) * (box[3] - box[1]) / (width * height))
    return Reading(image, box, inside, area)


def seen_share(layout: TokenLayout, image: int) -> float:
    """Return the share of a picture that its grids span."""
    width, height = layout.image_sizes[image]
    share = 1.0
    for name, length in (("x_edges", width), ("y_edges", height)):
        edges = [getattr(grid, name) for grid in layout.grids if grid.image == image]
        low, high = min(map(np.min, edges)), max(map(np.max, edges))
        share *= (min(float(high), length) - max(float(low), 0.0)) / length
    return float(share)


class _Raster:
    """The mass of a map between the lines of all grids over one picture."""

    def __init__(self, image: int, shares: FloatArray, layout: TokenLayout) -> None:
        self.image = image
        self.width, self.height = layout.image_sizes[image]
        parts = _densities(image, shares, layout)
        self.x = _lines([grid.x_edges for grid, _ in parts], self.width)
        self.y = _lines([grid.y_edges for grid, _ in parts], self.height)
        cells = np.zeros((len(self.y) - 1, len(self.x) - 1))
        for grid, density in parts:
            rows = np.array(
                [_covered(grid.y_edges, ends) for ends in zip(self.y, self.y[1:], strict=False)]
            )
            columns = np.array(
                [_covered(grid.x_edges, ends) for ends in zip(self.x, self.x[1:], strict=False)]
            )
            cells += rows @ density @ columns.T
        self.sums = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def smallest(self, share: float) -> Reading | None:
        """Find the smallest box between the lines that holds this share."""
        y0, y1 = np.triu_indices(len(self.y), 1)
        x0, x1 = np.triu_indices(len(self.x), 1)
        rows = self.sums[y1] - self.sums[y0]
        masses = rows[:, x1] - rows[:, x0]
        areas = np.outer(self.y[y1] - self.y[y0], self.x[x1] - self.x[x0])
        # A rounding error below the share is the share; of boxes of one size, the fullest.
        costs = np.where(masses >= share - 1e-9, areas - 1e-9 * masses, np.inf)
        row, column = np.unravel_index(int(costs.argmin()), costs.shape)
        if not np.isfinite(costs[row, column]):
            return None
        box = (self.x[x0[column]], self.y[y0[row]], self.x[x1[column]], self.y[y1[row]])
        area = float(areas[row, column]) / (self.width * self.height)
        return Reading(self.image, tuple(map(float, box)), float(masses[row, column]), area)  # type: ignore[arg-type]


def _densities(
    image: int, shares: FloatArray, layout: TokenLayout
) -> list[tuple[Grid, FloatArray]]:
    """Return each grid of a picture with the mass per pixel of its boxes."""
    parts = []
    for grid in layout.grids:
        if grid.image == image:
            across, down = np.diff(grid.x_edges)[:, 0], np.diff(grid.y_edges)[:, 0]
            masses = grid.values(shares, layout.image_positions)
            parts.append((grid, masses / np.outer(down, across)))
    return parts


def _lines(edges: Sequence[FloatArray], length: float) -> FloatArray:
    """Lines at which a box may begin or end: those of the boxes, or fewer even ones."""
    inner = np.concatenate([np.zeros(0), *(pairs.ravel() for pairs in edges)])
    lines = np.unique(np.clip(np.append(inner, [0.0, length]), 0, length))
    return lines if len(lines) <= _LINES else np.linspace(0, length, _LINES)


def _covered(pairs: FloatArray, ends: Sequence[float]) -> FloatArray:
    """Length of every interval, (n, 2), that lies between two ends: (n,)."""
    covered: FloatArray = np.minimum(pairs[:, 1], ends[1]) - np.maximum(pairs[:, 0], ends[0])
    return np.maximum(covered, 0.0)
