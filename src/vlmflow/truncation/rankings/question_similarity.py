"""Likeness to the question: the idea of Simignore (Zhang et al. 2025, arXiv 2412.09817)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmflow.truncation.rankings.base import Candidates, ScoreRanking


class QuestionSimilarity(ScoreRanking):
    """Highest cosine similarity to any text token after the picture, at the layer's input.

    Simignore compares with the embeddings of a multiple-choice question's options; the question's
    own tokens need no options. At layer 0 both sides are embeddings, as there.
    """

    def scores(self, candidates: Candidates) -> Tensor:
        """Score by similarity; see :meth:`ScoreRanking.scores`."""
        directions = normalize(candidates.hidden.float(), dim=-1)
        if not len(candidates.text):
            return torch.zeros(len(candidates.image), device=candidates.hidden.device)
        alike = directions[candidates.image] @ directions[candidates.text].T
        return alike.amax(1)
