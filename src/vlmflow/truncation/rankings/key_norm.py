"""Norm of the keys: small ones draw attention (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class KeyNorm(Ranking):
    """Minus the L2 norm of a token's key at the layer before, mean over the key heads."""

    name = "key_norm"
    summary = "small key norm first (Devoto et al. 2024)"
    source = "Devoto et al. 2024, arXiv 2406.11430"
    reads = "keys"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by the keys; see :meth:`Ranking.scores`."""
        norms: Tensor = -seen.keys.float().norm(dim=-1).mean(0)
        return norms
