"""Least duplicated tokens: DART (Wen et al. 2025, arXiv 2502.11494)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmflow.parameters import check_integer
from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking, RankingSize


@dataclass(frozen=True)
class Duplication(Ranking):
    """A few pivots, then the tokens that are least like them.

    The pivots are the image tokens of largest key norm at the layer before (L1, as DART's code
    does). Each pivot in turn takes the tokens of lowest cosine similarity to it that are still
    free, the same number for each. DART also uses text tokens as pivots; this ranking uses
    image tokens only.

    Parameters
    ----------
    pivots : int
        How many; at least 1.
    """

    name = "duplication"
    summary = "least like a few pivot tokens (DART)"
    source = "Wen et al. 2025, arXiv 2502.11494"
    reads = "keys"

    pivots: int = 8

    def __post_init__(self) -> None:
        check_integer("pivots", self.pivots, least=1)

    def select(self, seen: Candidates, keep: int) -> Tensor:
        """Choose pivots and what differs from them; see :meth:`Ranking.select`."""
        norms = seen.keys.float().norm(p=1, dim=-1).mean(0)
        pivots = norms.sort(descending=True, stable=True).indices[: min(self.pivots, keep)]
        directions = normalize(seen.hidden[seen.image].float(), dim=-1)
        alike = directions @ directions[pivots].T
        free = torch.ones(len(directions), dtype=torch.bool, device=directions.device)
        free[pivots] = False
        left = keep - len(pivots)
        for number in range(len(pivots)):
            share = -(-left // (len(pivots) - number))  # what is left, evenly, rounded up
            scores = alike[:, number].masked_fill(~free, torch.inf)
            free[scores.sort(stable=True).indices[:share]] = False
            left -= share
        return (~free).nonzero()[:, 0]

    def flops(self, size: RankingSize) -> int:
        """Count the products of image tokens with the pivots."""
        return 2 * size.image * self.pivots * size.width
