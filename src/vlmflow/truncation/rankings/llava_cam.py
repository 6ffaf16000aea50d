"""Oracle: LLaVA-CAM of the model's own first answer token at the layer before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class LlavaCamOracle(Ranking):
    """LLaVA-CAM at the layer before the one that truncates (at layer 0: at layer 0)."""

    name = "llava_cam"
    summary = "oracle: LLaVA-CAM of the first answer token at the layer before"
    reads = "answer"
    signal = "llava_cam"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by one layer's map; see :meth:`Ranking.scores`."""
        return seen.maps[max(seen.layer - 1, 0)]
