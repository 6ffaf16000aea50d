"""Least duplicated tokens: DART (Wen et al. 2025, arXiv 2502.11494)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmflow.truncation.rankings.base import Candidates, Ranking

PIVOTS = 8


class Duplication(Ranking):
    """A few pivots, then the tokens that are least like them.

    The pivots are the image tokens of largest key norm at the layer before (L1, as DART's code
    does). Each pivot in turn takes the tokens of lowest cosine similarity to it that are still
    free, the same number for each. DART also uses text tokens as pivots; here all are image
    tokens.
    """

    def select(self, candidates: Candidates, keep: int) -> Tensor:
        """Choose pivots and what differs from them; see :meth:`Ranking.select`."""
        keys = candidates.attention.key[candidates.sample][:, candidates.image_keys]
        norms = keys.float().norm(p=1, dim=-1).mean(0)
        pivots = norms.sort(descending=True, stable=True).indices[: min(PIVOTS, keep)]
        directions = normalize(candidates.hidden[candidates.image].float(), dim=-1)
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
