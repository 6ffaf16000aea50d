"""Which rows are for calibration, and in what order rows come: the same everywhere and always."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

THIRD = 3


def is_calibration(cluster: str) -> bool:
    """Whether a picture belongs to the third of an undivided split that is for calibration."""
    return _draw(f"split {cluster}") % THIRD == 0


def shuffled(numbers: Iterable[int]) -> list[int]:
    """Return row numbers in an order drawn once, so that the first few are like all others.

    Data sets come sorted by category or picture: their first rows are a biased sample.
    """
    return sorted(numbers, key=lambda number: _draw(f"row {number}"))


def shuffled_together(numbers: Iterable[int], clusters: list[str]) -> list[int]:
    """Return row numbers with the pictures in an order drawn once, rows of one picture together."""
    return sorted(numbers, key=lambda number: (_draw(f"row {clusters[number]}"), number))


def _draw(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
