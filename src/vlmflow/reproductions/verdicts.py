"""Whether a printed figure and a measured one agree, by a rule that is the same everywhere."""

from __future__ import annotations

from vlmflow.reproductions.figures import Measured
from vlmflow.statistics.intervals import Estimate

WITHIN, OUTSIDE, UNKNOWN = "within the interval", "outside it", "cannot tell"

LEAST = 100
"""Fewer samples decide nothing: their intervals are not reliable."""

WIDEST, WIDEST_CHANGE = 0.05, 0.02
"""Widest half of an interval (of a figure; of a change) that a printed figure may lie within.

As a share of what is printed for 1: 5 and 2 points of 100. Nearly anything lies within a wider one.
"""


def verdict(printed: float, measured: Measured, scale: float) -> str:
    """Say where the printed figure lies.

    Outside the measured 95 % interval; within it; or that this cannot be told, for fewer than
    :data:`LEAST` samples or an interval wider than :data:`WIDEST` to either side.
    """
    return _verdict(printed, measured.estimate, measured.count, WIDEST * scale)


def change_verdict(printed: float, measured: Measured, scale: float) -> str:
    """Say the same of a change to the untouched model, with :data:`WIDEST_CHANGE`."""
    assert measured.change is not None
    return _verdict(printed, measured.change, measured.count, WIDEST_CHANGE * scale)


def _verdict(printed: float, estimate: Estimate, count: int, widest: float) -> str:
    # A bootstrap whose draws cannot differ knows nothing about other samples.
    if count < LEAST or estimate.low == estimate.high:
        return UNKNOWN
    if not estimate.low <= printed <= estimate.high:
        return OUTSIDE
    half = (estimate.high - estimate.low) / 2
    return WITHIN if half <= widest else UNKNOWN
