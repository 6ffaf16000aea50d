"""Norm of the keys: small ones draw attention (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from torch import Tensor

from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class KeyNorm(ScoreRanking):
    """Minus the L2 norm of a token's key at the layer before, mean over the key heads."""

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by the keys; see :meth:`ScoreRanking.scores`."""
        keys = candidates.attention.key[candidates.sample][:, candidates.image_keys]
        norms: Tensor = -keys.float().norm(dim=-1).mean(0)
        return norms
