"""The rows of a comparison: one ranking, or random tokens, at one number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.statistics.intervals import Estimate
from vlmflow.truncation.amounts import Amount
from vlmflow.truncation.rankings.ranking import Ranking

ALPHA = 0.05
BETTER, WORSE, UNKNOWN = "better", "worse", "not shown to differ"
"""Verdicts against random tokens: the test, all of a comparison corrected together (Holm), and the
interval have to agree."""


@dataclass(frozen=True)
class ComparedRow:
    """One ranking at one number of tokens, on the test samples that all arms answered.

    Parameters
    ----------
    ranking : Ranking
        Which.
    keep : Amount
        Image tokens that stay.
    score : Estimate
        Mean of the task's score.
    lost : Estimate
        Score minus the untouched model's, over the same samples.
    gain : Estimate
        Score minus that of as many random tokens, the mean of several draws; over the same samples.
    p_value, adjusted : float
        Of the two-sided test whether the gain is 0 (sign flips), alone and corrected by Holm for
        all rows of the comparison.
    cost : float or None
        Of a prefill, the ranking in it, untouched = 1; None where nothing was measured.
    gain_at_cost : Estimate or None
        Score minus that of random tokens of which so many stay that they cost as much.
    """

    ranking: Ranking
    keep: Amount
    score: Estimate
    lost: Estimate
    gain: Estimate
    p_value: float
    adjusted: float
    cost: float | None
    gain_at_cost: Estimate | None

    @property
    def verdict(self) -> str:
        """:data:`BETTER`, :data:`WORSE` or :data:`UNKNOWN`."""
        if self.adjusted > ALPHA or self.gain.low <= 0 <= self.gain.high:
            return UNKNOWN
        return BETTER if self.gain.value > 0 else WORSE


@dataclass(frozen=True)
class RandomRow:
    """As many random tokens: the mean of several draws."""

    keep: Amount
    score: Estimate
    lost: Estimate  # Score minus the untouched model's
    cost: float | None
