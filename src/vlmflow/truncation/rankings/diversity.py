"""The most different tokens: DivPrune (Alvar et al. 2025, arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking, RankingSize


@dataclass(frozen=True)
class Diversity(Ranking):
    """Max-min diversity by cosine distance, greedily.

    First the token whose nearest neighbour is farthest, then always the one farthest from those
    already chosen. DivPrune does this on the projected patches, before the decoder: layer 0.
    """

    name = "diversity"
    summary = "farthest from those already kept (DivPrune)"
    source = "Alvar et al. 2025, arXiv 2503.02175"

    def select(self, seen: Candidates, keep: int) -> Tensor:
        """Choose by farthest points; see :meth:`Ranking.select`."""
        directions = normalize(seen.hidden[seen.image].float(), dim=-1)
        distance = 1 - directions @ directions.T
        distance.fill_diagonal_(torch.inf)
        chosen = [distance.amin(1).argmax()]
        distance.fill_diagonal_(0.0)
        nearest = distance[chosen[0]].clone()
        nearest[chosen[0]] = -torch.inf
        while len(chosen) < keep:
            chosen.append(nearest.argmax())
            nearest = torch.minimum(nearest, distance[chosen[-1]])
            nearest[chosen[-1]] = -torch.inf
        return torch.stack(chosen).sort().values

    def flops(self, size: RankingSize) -> int:
        """Count the products of all image tokens with each other."""
        return 2 * size.image**2 * size.width
