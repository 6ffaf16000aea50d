"""Oracles: gradients of the model's own first answer token. An upper bound, not a method."""

from __future__ import annotations

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class GradientOracle(ScoreRanking):
    """Scores by a signal that the untouched model was measured with before.

    ``"saliency"`` is the flow map over the layers before the one that truncates,
    ``"llava_cam"`` LLaVA-CAM at the last of them (at layer 0: at layer 0). It costs a whole forward
    and backward pass and sees the answer.
    """

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by the signal; see :meth:`ScoreRanking.scores`."""
        if candidates.gradient_scores is None:
            raise InputError(
                "an oracle ranking needs the whole prompt in one call; start a new conversation "
                "instead of continuing one"
            )
        return candidates.gradient_scores
