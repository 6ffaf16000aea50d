"""What a signal can be made of."""

from __future__ import annotations

ATTENTION, SALIENCY, FEATURES = "attention", "saliency", "features"
READS = (ATTENTION, SALIENCY, FEATURES)
"""See :attr:`vlmflow.flow.signals.signal.Signal.reads`."""

ROWS = ("answer", "text")
"""Whose attention it can be made of, see :attr:`vlmflow.flow.signals.signal.Signal.rows`."""
