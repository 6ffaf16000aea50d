"""Random choice: the control that every ranking has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow.parameters import check_integer
from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class Random(Ranking):
    """Drawn from the seed and the prompt's ids: the same alone and in any batch.

    Parameters
    ----------
    seed : int
        From 0 on.
    """

    name = "random"
    summary = "seeded random choice: the control"

    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)

    def select(self, seen: Candidates, keep: int) -> Tensor:
        """Choose at random; see :meth:`Ranking.select`."""
        order = torch.randperm(len(seen.image), generator=seen.generator(self.seed))
        return order[:keep].sort().values.to(seen.image.device)
