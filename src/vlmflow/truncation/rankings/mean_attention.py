"""Mean attention a token receives from all later ones: what FastV's text says (its eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmflow.flow.attention_rows import mean_attention
from vlmflow.truncation.rankings.base import Candidates, ScoreRanking

ROWS = 256


class MeanAttention(ScoreRanking):
    """``mean over i > j and h of A[l, h, i, j]`` at the layer before."""

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by the later rows' mean; see :meth:`ScoreRanking.scores`."""
        call, image = candidates.attention, candidates.image
        rows = torch.cat([image, candidates.text]).sort().values
        total = torch.zeros(len(image), device=image.device)
        for start in range(0, len(rows), ROWS):
            chunk = rows[start : start + ROWS]
            attention = mean_attention(call, candidates.sample, chunk)[:, candidates.image_keys]
            total = total + (attention * (chunk[:, None] > image[None])).sum(0)
        later = (rows[:, None] > image[None]).sum(0)
        return total / later.clamp_min(1)
