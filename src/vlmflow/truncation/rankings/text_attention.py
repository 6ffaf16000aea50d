"""Attention from the text after the picture: the raters of SparseVLM (Zhang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class TextAttention(Ranking):
    """``mean over text rows i and h of A[l, h, i, j]`` at the layer before.

    All text after the first image token counts. SparseVLM uses only those text tokens that are
    more like the picture than the average text token.
    """

    name = "text_attention"
    summary = "mean attention from the text after the picture (SparseVLM's raters)"
    source = "Zhang et al. 2025, arXiv 2410.04417"
    reads = "attention"
    rows = "text"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by the text rows' mean; see :meth:`Ranking.scores`."""
        return seen.attention.mean(0)
