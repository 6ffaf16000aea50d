"""Rankings: which image tokens stay."""

from __future__ import annotations

from vlmflow.truncation.rankings.base import Candidates, Ranking, ScoreRanking
from vlmflow.truncation.rankings.diversity import Diversity
from vlmflow.truncation.rankings.duplication import Duplication
from vlmflow.truncation.rankings.key_norm import KeyNorm
from vlmflow.truncation.rankings.last_attention import LastAttention
from vlmflow.truncation.rankings.mean_attention import MeanAttention
from vlmflow.truncation.rankings.oracle import GradientOracle
from vlmflow.truncation.rankings.question_similarity import QuestionSimilarity
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.text_attention import TextAttention
from vlmflow.truncation.rankings.top_left import TopLeft
from vlmflow.truncation.rankings.uniform import Uniform
from vlmflow.truncation.rankings.value_norm import ValueNorm

RANKINGS: dict[str, Ranking] = {
    "last_attention": LastAttention(),
    "mean_attention": MeanAttention(),
    "text_attention": TextAttention(),
    "saliency": GradientOracle(),
    "llava_cam": GradientOracle(),
    "key_norm": KeyNorm(),
    "value_norm": ValueNorm(),
    "question_similarity": QuestionSimilarity(),
    "duplication": Duplication(),
    "diversity": Diversity(),
    "random": Random(),
    "uniform": Uniform(),
    "top_left": TopLeft(),
}

__all__ = ["RANKINGS", "Candidates", "Ranking", "ScoreRanking"]
