"""Norm of the values: how much a token can pass on (Guo et al. 2024, VATP)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class ValueNorm(Ranking):
    """L1 norm of a token's value at the layer before, mean over the key heads.

    VATP (arXiv 2406.12335) multiplies it by the attention; this ranking uses it alone.
    """

    name = "value_norm"
    summary = "large value norm first"
    source = "Guo et al. 2024, arXiv 2406.12335"
    reads = "keys"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by the values; see :meth:`Ranking.scores`."""
        norms: Tensor = seen.values.float().norm(p=1, dim=-1).mean(0)
        return norms
