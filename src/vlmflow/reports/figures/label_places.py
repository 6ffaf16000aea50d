"""Where labels of points go, so that none covers another, or a mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextToPath

from vlmflow.reports.figures.style import drawable
from vlmflow.reports.palette import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURE = TextToPath()
_DISTANCES = (7, 13, 21, 31, 43, 57)
_ANGLES = tuple(range(0, 360, 30))
_MARK = 4.0
"""Half the side of a mark with its edge, in points."""

Box = tuple[float, float, float, float]
"""``x0, y0, x1, y1`` in points."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A text for a point, in data coordinates."""

    x: float
    y: float
    text: str
    bold: bool = False


def place_labels(axes: Axes, labels: Sequence[Label], marks: FloatArray, lines: FloatArray) -> None:
    """Write labels beside their points, with a thin line where they stand further off.

    Labels come with the most important first. None covers one of ``marks``, (n, 2); ``lines``,
    (m, 2), should rather not be covered; both are in data coordinates. The limits of the axes have
    to be final. A label without room is left out, except a bold one.
    """
    figure = axes.get_figure()
    assert figure is not None
    scale = 72 / figure.dpi
    soft, hard = (axes.transData.transform(p.reshape(-1, 2)) * scale for p in (lines, marks))
    ends = axes.get_window_extent()
    inside = (ends.x0 * scale + 3, ends.y0 * scale, ends.x1 * scale, ends.y1 * scale)
    taken: list[Box] = []
    for label in labels:
        fonts = FontProperties(size=7, weight="bold" if label.bold else "normal")
        text = drawable(label.text)
        wide, high, _ = _MEASURE.get_text_width_height_descent(text, fonts, ismath=False)
        x, y = axes.transData.transform((label.x, label.y)) * scale
        best: tuple[float, float, float, Box] | None = None
        for distance in _DISTANCES:
            for angle in _ANGLES:
                dx, dy = _offset(distance, angle, 1.05 * wide, high)
                box = (x + dx, y + dy, x + dx + 1.05 * wide, y + dy + high)
                blocked = _outside(box, inside) + sum(_overlap(box, other) for other in taken)
                blocked += _covered(box, hard, _MARK)
                cost = 1000 * blocked + 3 * _covered(box, soft, 1) + distance / 4
                if best is None or cost < best[0]:
                    best = (cost, dx, dy, box)
        assert best is not None
        cost, dx, dy, box = best
        if cost >= 1000 and not label.bold:
            continue
        taken.append(box)
        _write(axes, label, text, (dx, dy), box, (x, y), fonts)


def _write(
    axes: Axes,
    label: Label,
    text: str,
    offset: tuple[float, float],
    box: Box,
    point: tuple[float, float],
    fonts: FontProperties,
) -> None:
    nearest = (
        min(max(point[0], box[0]), box[2]) - point[0],
        min(max(point[1], box[1]), box[3]) - point[1],
    )
    if math.hypot(*nearest) > 8:
        axes.annotate(
            "", (label.x, label.y), nearest, textcoords="offset points", zorder=5,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1,
                        "shrinkB": 4},
        )  # fmt: skip
    options: dict[str, Any] = {"path_effects": [withStroke(linewidth=2.2, foreground="white")]}
    axes.annotate(
        text, (label.x, label.y), offset, textcoords="offset points", fontproperties=fonts,
        ha="left", va="bottom", zorder=6, **options,
    )  # fmt: skip


def _offset(distance: float, angle: float, wide: float, high: float) -> tuple[float, float]:
    """Return where a box's lower left corner goes, seen from the point, all in points."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return distance * across + (across - 1) / 2 * wide, distance * up + (up - 1) / 2 * high


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] + 3 and b[0] < a[2] + 3 and a[1] < b[3] + 2 and b[1] < a[3] + 2


def _outside(box: Box, ends: Box) -> bool:
    return box[0] < ends[0] or box[1] < ends[1] or box[2] > ends[2] or box[3] > ends[3]


def _covered(box: Box, places: FloatArray, margin: float) -> int:
    """Count the places within a box."""
    x, y = places[:, 0], places[:, 1]
    across = (x > box[0] - margin) & (x < box[2] + margin)
    return int((across & (y > box[1] - margin) & (y < box[3] + margin)).sum())
