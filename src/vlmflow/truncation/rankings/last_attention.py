"""Attention of the last prompt token: the paper's eq. 12, and FastV's code (Chen et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmflow.flow.attention_rows import mean_attention
from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class LastAttention(ScoreRanking):
    """``mean_h A[l, h, last, j]`` at the layer before."""

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by one row of attention; see :meth:`ScoreRanking.scores`."""
        last = torch.cat([candidates.image, candidates.text]).amax()[None]
        row = mean_attention(candidates.attention, candidates.sample, last)[0]
        return row[candidates.image_keys]
