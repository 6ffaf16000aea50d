"""The top left part of every picture: with a shrunken picture there, the control of less detail."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class TopLeft(ScoreRanking):
    """Keeps a corner of every picture, of the picture's own proportions."""

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by how far right or down, as a share of the picture; see :class:`ScoreRanking`."""
        places = candidates.places
        if places is None:
            raise InputError(
                "rank_by='top_left' needs rows and columns of image tokens, which are not known "
                "for this model; choose another ranking"
            )
        _, row, column = places.to(candidates.image.device).unbind(1)
        return -torch.maximum((row + 1) / (row.max() + 1), (column + 1) / (column.max() + 1))
