"""Attention from the text after the picture: the raters of SparseVLM (Zhang et al. 2025)."""

from __future__ import annotations

from torch import Tensor

from vlmflow.flow.attention_rows import mean_attention
from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class TextAttention(ScoreRanking):
    """``mean over text rows i and h of A[l, h, i, j]`` at the layer before.

    All text after the first image token rates. SparseVLM lets only those words rate that look like
    the picture more than the average word does.
    """

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by the text rows' mean; see :meth:`ScoreRanking.scores`."""
        rows = candidates.text if len(candidates.text) else candidates.image[-1:]
        attention = mean_attention(candidates.attention, candidates.sample, rows)
        return attention[:, candidates.image_keys].mean(0)
