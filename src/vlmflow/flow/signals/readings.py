"""What a signal can be made of."""

from __future__ import annotations

ATTENTION, SALIENCY, FEATURES = "attention", "saliency", "features"
HEADS, HEAD_GRADIENTS = "heads", "head_gradients"
LOGITS, REMOVAL = "logits", "removal"
MAPS = "maps"

READS = (ATTENTION, SALIENCY, FEATURES, HEADS, HEAD_GRADIENTS, LOGITS, REMOVAL, MAPS)
"""See :attr:`vlmflow.flow.signals.signal.Signal.reads`."""

TOGETHER = ((ATTENTION, SALIENCY), (FEATURES,), (HEADS, HEAD_GRADIENTS), (LOGITS, REMOVAL), (MAPS,))
"""What is seen at the same time: a signal reads of one group alone."""

NEED_GRADIENTS = (SALIENCY, FEATURES, HEAD_GRADIENTS)

ROWS = ("answer", "text")
"""Whose attention it can be made of, see :attr:`vlmflow.flow.signals.signal.Signal.rows`."""
