"""Attention of the last prompt token: the paper's eq. 12, and FastV's code (Chen et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class LastAttention(Ranking):
    """``mean_h A[l, h, last, j]`` at the layer before."""

    name = "last_attention"
    summary = "attention of the last prompt token (the paper's eq. 12; FastV's code)"
    source = "Zhang et al. 2025, arXiv 2406.06579, eq. 12"
    reads = "attention"
    rows = "last"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by one row of attention; see :meth:`Ranking.scores`."""
        return seen.attention[0]
