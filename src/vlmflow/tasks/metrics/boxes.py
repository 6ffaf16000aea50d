"""Boxes in answers: read, and compared by intersection over union."""

from __future__ import annotations

import re

Box = tuple[float, float, float, float]

_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([f"({_NUMBER})"] * 4) + r"\s*[\])]")


def read_box(answer: str) -> Box | None:
    """Return the first ``[x0, y0, x1, y1]`` of an answer; None without one, or one without area.

    Round brackets count as square ones. Nothing is guessed from loose numbers.
    """
    found = _BOX.search(answer)
    if found is None:
        return None
    x0, y0, x1, y1 = map(float, found.groups())
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def intersection_over_union(first: Box, other: Box) -> float:
    """Area that two boxes share, over the area that they cover together: 0 to 1."""
    across = min(first[2], other[2]) - max(first[0], other[0])
    down = min(first[3], other[3]) - max(first[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, other)]
    return shared / (sum(areas) - shared)
