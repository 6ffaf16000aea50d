"""Which truncation a study recommends, and whether it could have told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmflow.statistics.loss_tests import ALPHA, holm
from vlmflow.studies.truncations.arms import Arm
from vlmflow.studies.truncations.summaries import ArmSummary

SAFE, UNSAFE, UNKNOWN = "safe", "not safe", "cannot tell"
"""Verdicts about a truncation on the calibration samples.

Its loss is shown to be at most what is allowed; shown to be more; or neither.
"""


@dataclass(frozen=True)
class Recommendation:
    """The truncation chosen on the calibration split, and what it does on the test split.

    Parameters
    ----------
    chosen : ArmSummary
        On the calibration split: the largest saving among the safe ones.
    test : ArmSummary
        The same arm on the test split, which had no part in the choice.
    max_loss : float
        Loss that is allowed.
    """

    chosen: ArmSummary
    test: ArmSummary
    max_loss: float

    @property
    def holds(self) -> bool:
        """Whether the loss is shown to be at most ``max_loss`` on the test split, too."""
        return self.test.p_value is not None and self.test.p_value <= ALPHA


@dataclass(frozen=True)
class Choice:
    """What the calibration samples say about every truncation that may be recommended.

    Parameters
    ----------
    max_loss : float
        Loss of score that is allowed.
    verdicts : mapping of str to str
        :data:`SAFE`, :data:`UNSAFE` or :data:`UNKNOWN`, by the arm's name. Safe are those that pass
        Holm's correction for all of them together: with 95 % confidence no unsafe one is among
        them, however many were tried.
    recommendation : Recommendation or None
        The safe one that saves most.
    count : int
        Calibration samples.
    """

    max_loss: float
    verdicts: Mapping[str, str]
    recommendation: Recommendation | None
    count: int


def may_be_recommended(arm: Arm) -> bool:
    """Whether an arm is a truncation, and not an oracle, which looks at the answer."""
    policy = arm.truncation
    return arm.kind == "truncation" and policy is not None and not policy.is_oracle


def choose(summaries: Sequence[ArmSummary], max_loss: float) -> Choice:
    """Test every truncation on the calibration samples, and choose among those that pass."""
    tried = [
        summary
        for summary in summaries
        if summary.split == "calibration" and may_be_recommended(summary.arm)
    ]
    passed = holm([1.0 if summary.p_value is None else summary.p_value for summary in tried])
    verdicts = {
        summary.arm.name: SAFE if safe else UNSAFE if _is_unsafe(summary, max_loss) else UNKNOWN
        for summary, safe in zip(tried, passed, strict=True)
    }
    tests = {summary.arm.name: summary for summary in summaries if summary.split == "test"}
    safe = [
        summary
        for summary in tried
        if verdicts[summary.arm.name] == SAFE
        and summary.cost_share < 1
        and summary.arm.name in tests
    ]
    best = min(safe, key=lambda summary: summary.cost_share, default=None)
    return Choice(
        max_loss=max_loss,
        verdicts=verdicts,
        recommendation=None
        if best is None
        else Recommendation(best, tests[best.arm.name], max_loss),
        count=max((summary.count for summary in tried), default=0),
    )


def _is_unsafe(summary: ArmSummary, max_loss: float) -> bool:
    return summary.difference is not None and summary.difference.high < -max_loss
