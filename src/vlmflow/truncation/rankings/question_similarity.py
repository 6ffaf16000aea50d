"""Likeness to the question: the idea of Simignore (Zhang et al. 2025, arXiv 2412.09817)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking, RankingSize


@dataclass(frozen=True)
class QuestionSimilarity(Ranking):
    """Highest cosine similarity to any text token after the picture, at the layer's input.

    Simignore compares with the embeddings of a multiple-choice question's options; the question's
    own tokens need no options. At layer 0 both sides are embeddings, as in Simignore.
    """

    name = "question_similarity"
    summary = "likeness to the question's tokens (Simignore's idea, without options)"
    source = "Zhang et al. 2025, arXiv 2412.09817"

    def scores(self, seen: Candidates) -> Tensor:
        """Score by similarity; see :meth:`Ranking.scores`."""
        directions = normalize(seen.hidden.float(), dim=-1)
        if not len(seen.text):
            return torch.zeros(len(seen.image), device=seen.hidden.device)
        alike = directions[seen.image] @ directions[seen.text].T
        return alike.amax(1)

    def flops(self, size: RankingSize) -> int:
        """Count the products of image tokens with text tokens."""
        return 2 * size.image * size.user * size.width
