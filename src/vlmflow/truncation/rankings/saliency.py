"""Oracle: the flow map of the model's own first answer token, up to the layer that truncates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class SaliencyOracle(Ranking):
    """Saliency summed over the layers before the one that truncates."""

    name = "saliency"
    summary = "oracle: flow map of the first answer token up to the layer"
    reads = "answer"
    signal = "saliency"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by the sum over layers; see :meth:`Ranking.scores`."""
        return seen.maps[: seen.layer].sum(0)
