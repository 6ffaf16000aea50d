"""How little the last token looks at the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView


@dataclass(frozen=True)
class ImageAttention(ExitSignal):
    """``-sum_j mean_h A[h, last, j]`` over the image tokens j, at the layer before."""

    name = "image_attention"
    summary = "how little of the last token's attention goes to the image tokens"
    source = "the share of Zhang et al. 2025 (arXiv 2406.06579), Figure 2, per input"
    reads = "attention"

    def value(self, seen: ExitView) -> Tensor:
        """Add up; see :meth:`ExitSignal.value`."""
        return -seen.attention[:, seen.image].sum(1).mean()
