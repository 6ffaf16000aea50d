"""Norm of the values: what a token has to say, whoever listens (Guo et al. 2024, VATP)."""

from __future__ import annotations

from torch import Tensor

from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class ValueNorm(ScoreRanking):
    """L1 norm of a token's value at the layer before, mean over the key heads.

    VATP (arXiv 2406.12335) multiplies it with attention; here it stands alone.
    """

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by the values; see :meth:`ScoreRanking.scores`."""
        values = candidates.attention.value[candidates.sample][:, candidates.image_keys]
        norms: Tensor = values.float().norm(p=1, dim=-1).mean(0)
        return norms
