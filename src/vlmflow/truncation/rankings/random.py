"""Random choice: the control that every ranking has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmflow.truncation.rankings.base import Candidates, Ranking


class Random(Ranking):
    """Seeded by the policy's seed and the prompt's ids: the same alone and in any batch."""

    def select(self, candidates: Candidates, keep: int) -> Tensor:
        """Choose at random; see :meth:`Ranking.select`."""
        generator = torch.Generator().manual_seed(candidates.seed)
        order = torch.randperm(len(candidates.image), generator=generator)
        return order[:keep].sort().values.to(candidates.image.device)
