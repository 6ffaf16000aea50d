"""Mean attention a token receives from all later ones: what FastV's text says (its eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking

CHUNK = 256
"""Rows of attention that exist at once."""


@dataclass(frozen=True)
class MeanAttention(Ranking):
    """``mean over i > j and h of A[l, h, i, j]`` at the layer before."""

    name = "mean_attention"
    summary = "mean attention from all later tokens (FastV's text)"
    source = "Chen et al. 2024, arXiv 2403.06764, eq. 4"
    reads = "attention"
    rows = "all"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by the later rows' mean; see :meth:`Ranking.scores`."""
        image = seen.image
        rows = torch.cat([image, seen.text]).sort().values
        total = torch.zeros(len(image), device=image.device)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            total = total + (seen.attention_of(chunk) * (chunk[:, None] > image[None])).sum(0)
        later = (rows[:, None] > image[None]).sum(0)
        return total / later.clamp_min(1)
