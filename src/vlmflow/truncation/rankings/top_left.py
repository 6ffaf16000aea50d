"""The top left part of every picture: the control of less detail, where a shrunken picture lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class TopLeft(Ranking):
    """Keeps a corner of every picture, of the picture's own proportions."""

    name = "top_left"
    summary = "the top left corner: for studies' down-sampled pictures, which lie there"
    reads = "places"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by how far right or down, as a share of the picture; see :class:`Ranking`."""
        _, row, column = seen.places.to(seen.image.device).unbind(1)
        return -torch.maximum((row + 1) / (row.max() + 1), (column + 1) / (column.max() + 1))
