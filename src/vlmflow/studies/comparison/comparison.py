"""What a comparison of rankings says: which of them beats random tokens, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value
from vlmflow.studies.comparison.arms import is_comparison, is_control
from vlmflow.studies.comparison.equal_cost import scores_at_cost
from vlmflow.studies.comparison.rows import UNKNOWN, ComparedRow, RandomRow
from vlmflow.studies.comparison.sentences import headline, keep_words, left_out_words
from vlmflow.studies.truncations.arms import Arm
from vlmflow.studies.truncations.results import DRAWS, StudyResult
from vlmflow.studies.truncations.sentences import NAME_SHOWN, difference_words, percent
from vlmflow.studies.truncations.summaries import ArmSummary
from vlmflow.truncation.amounts import Amount
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.truncation import Truncation


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rankings compared with random tokens, read off a study of them.

    Raises
    ------
    InputError
        If the study is not one of rankings on one layer, or no sample was answered by all arms.
    """

    study: StudyResult

    def __post_init__(self) -> None:
        if not is_comparison(self.study.plan.truncations):
            raise InputError(
                "this study does not compare rankings with random tokens on one layer; make it "
                "with vlmflow.compare or 'vlmflow compare'"
            )
        if self.left_out and not self._methods:
            raise InputError(f"no ranking could be compared: {left_out_words(self.left_out)[0]}")
        if not self._samples:
            failures = [failure for failure in self.study.failures if failure.split == "test"]
            why = f": {shown(failures[0].reason, 300)}" if failures else ""
            raise InputError(
                f"no test sample of {shown(self.study.task.name, NAME_SHOWN)} was answered under "
                f"every ranking{why}"
            )

    @property
    def layer(self) -> int:
        """The decoder layer from which on tokens are gone."""
        return self._truncations[0].stages[0].layer

    @property
    def keeps(self) -> tuple[Amount, ...]:
        """Numbers of tokens, the most first."""
        return tuple(sorted(self._by_keep, key=lambda keep: -float(keep.plain)))

    @property
    def count(self) -> int:
        """Test samples that every arm has answered; only these are compared."""
        return len(self._samples)

    @cached_property
    def left_out(self) -> Mapping[Ranking, str]:
        """Rankings that are not compared, for they failed on every test sample, and why."""
        answered = self.study.answered_by(self.study.arms[:1], "test")
        found: dict[Ranking, str] = {}
        for arm in self.study.arms if answered else ():
            policy = arm.truncation
            if arm.kind != "truncation" or policy is None or is_control(policy.ranking):
                continue
            if not self.study.answered_by([arm], "test"):
                reason = self.study.answers[answered[0].id, arm.name].failure
                where = f"at keep {keep_words(policy.stages[0].keep)}: {reason}"
                found.setdefault(policy.ranking, where)
        return found

    @property
    def draws(self) -> int:
        """Random choices, whose scores are averaged sample by sample."""
        return len(self._random_arms(self.keeps[0]))

    @property
    def is_timed(self) -> bool:
        """Whether cost is measured time; otherwise operations, by a formula if they are unknown."""
        return all(summary.prefill_share is not None for summary in self._summaries.values())

    @property
    def is_counted(self) -> bool:
        """Whether operations are the model's own, counted, and no formula's."""
        return all(summary.flops_share is not None for summary in self._summaries.values())

    @cached_property
    def untouched(self) -> Estimate:
        """Score of the untouched model."""
        return self._mean(self._scores(self.study.arms[0]))

    @cached_property
    def random_rows(self) -> dict[Amount, RandomRow]:
        """Random tokens, by how many stay."""
        return {
            keep: RandomRow(
                keep,
                self._mean(self._random[keep]),
                self._paired(self._random[keep], self._scores(self.study.arms[0])),
                self._random_cost(keep),
            )
            for keep in self.keeps
        }

    @cached_property
    def rows(self) -> tuple[ComparedRow, ...]:
        """Every ranking at every number of tokens; by the mean gain of the ranking, best first."""
        rows = [
            self._row(arm, keep)
            for keep in self.keeps
            for arm in self._by_keep[keep]
            if arm.truncation is not None and not isinstance(arm.truncation.ranking, Random)
        ]
        adjusted = holm_adjusted([row.p_value for row in rows])
        corrected = [replace(row, adjusted=p) for row, p in zip(rows, adjusted, strict=True)]
        gains: dict[Ranking, list[float]] = {}
        for row in corrected:
            gains.setdefault(row.ranking, []).append(row.gain.value)
        return tuple(
            sorted(
                corrected,
                key=lambda row: (
                    -float(np.mean(gains[row.ranking])),
                    row.ranking.title,
                    -float(row.keep.plain),
                ),
            )
        )

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        """What is compared with random tokens, the largest mean gain first."""
        return tuple(dict.fromkeys(row.ranking for row in self.rows))

    def row(self, ranking: Ranking, keep: Amount) -> ComparedRow:
        """Return the row of a ranking at a number of tokens."""
        return next(row for row in self.rows if row.ranking == ranking and row.keep == keep)

    def frame(self) -> pd.DataFrame:
        """One row per number of tokens and ranking, random tokens among them."""
        plain: list[dict[str, Any]] = []
        for keep in self.keeps:
            drawn = self.random_rows[keep]
            plain.append(
                {"ranking": f"random, {self.draws} draws", "keep": keep.plain, "n": self.count}
                | _flat("score", drawn.score)
                | _flat("difference to untouched", drawn.lost)
                | {"cost": drawn.cost}
            )
            plain += [
                {"ranking": row.ranking.title, "keep": keep.plain, "n": self.count}
                | _flat("score", row.score)
                | _flat("difference to untouched", row.lost)
                | {"cost": row.cost}
                | _flat("difference to random", row.gain)
                | {"p": row.p_value, "p, Holm": row.adjusted, "verdict": row.verdict}
                | _flat("difference to random at equal cost", row.gain_at_cost)
                for row in self.rows
                if row.keep == keep
            ]
        return pd.DataFrame(plain)

    def _repr_html_(self) -> str:
        """Show one row per ranking in a notebook."""
        return fragment(
            "vlmflow.studies.comparison",
            headline=headline(self.study.task.name, self.layer, self.keeps, self.rows),
            left_out=left_out_words(self.left_out),
            keeps=[str(keep) for keep in self.keeps],
            random=[percent(self.random_rows[keep].score.value) for keep in self.keeps],
            rows=[
                {
                    "name": shown(ranking.title, NAME_SHOWN),
                    "cells": [self._cell(self.row(ranking, keep)) for keep in self.keeps],
                }
                for ranking in self.rankings
            ],
        )

    def _cell(self, row: ComparedRow) -> dict[str, Any]:
        value, ends = difference_words(row.gain)
        return {"value": value, "ends": ends, "is_shown": row.verdict != UNKNOWN}

    @property
    def _truncations(self) -> list[Truncation]:
        return [arm.truncation for arms in self._by_keep.values() for arm in arms if arm.truncation]

    @cached_property
    def _by_keep(self) -> Mapping[Amount, list[Arm]]:
        groups: dict[Amount, list[Arm]] = {}
        for arm in self.study.arms:
            if arm in self._arms and arm.kind == "truncation" and arm.truncation is not None:
                groups.setdefault(arm.truncation.stages[0].keep, []).append(arm)
        return groups

    @property
    def _methods(self) -> list[Arm]:
        """Those of rankings that are asked about, not of random tokens or the even spread."""
        return [
            arm
            for arms in self._by_keep.values()
            for arm in arms
            if arm.truncation is not None and not is_control(arm.truncation.ranking)
        ]

    @cached_property
    def _samples(self) -> tuple[Any, ...]:
        return self.study.answered_by(self._arms, "test")

    @cached_property
    def _arms(self) -> tuple[Arm, ...]:
        """Those of the study but for rankings that are left out."""
        return tuple(
            arm
            for arm in self.study.arms
            if arm.kind != "truncation"
            or arm.truncation is None
            or arm.truncation.ranking not in self.left_out
        )

    @cached_property
    def _clusters(self) -> list[str]:
        return [sample.cluster for sample in self._samples]

    @cached_property
    def _summaries(self) -> dict[str, ArmSummary]:
        return {
            summary.arm.name: summary
            for summary in self.study.summaries
            if summary.split == "test" and summary.arm in self._arms
            if summary.arm.kind == "truncation"
        }

    @cached_property
    def _random(self) -> dict[Amount, npt.NDArray[np.float64]]:
        """Scores of random tokens, the mean over draws: (n,) for every number of tokens."""
        return {
            keep: np.mean([self._scores(arm) for arm in self._random_arms(keep)], axis=0)
            for keep in self._by_keep
        }

    def _random_arms(self, keep: Amount) -> list[Arm]:
        return [
            arm
            for arm in self._by_keep[keep]
            if arm.truncation is not None and isinstance(arm.truncation.ranking, Random)
        ]

    def _row(self, arm: Arm, keep: Amount) -> ComparedRow:
        assert arm.truncation is not None
        scores, drawn = self._scores(arm), self._random[keep]
        p_value = sign_flip_p_value(scores - drawn, self._clusters, seed=self.study.plan.seed)
        cost = self._cost(arm)
        return ComparedRow(
            ranking=arm.truncation.ranking,
            keep=keep,
            score=self._mean(scores),
            lost=self._paired(scores, self._scores(self.study.arms[0])),
            gain=self._paired(scores, drawn),
            p_value=p_value,
            adjusted=p_value,
            cost=cost,
            gain_at_cost=None if cost is None else self._gain_at(scores, cost),
        )

    def _gain_at(self, scores: npt.NDArray[np.float64], cost: float) -> Estimate | None:
        """Compare with random tokens of equal cost; the untouched model is all of them."""
        rising = self.keeps[::-1]
        costs = [self._random_cost(keep) for keep in rising]
        measured = [value for value in costs if value is not None]
        if len(measured) < len(costs):
            return None
        table = [*(self._random[keep] for keep in rising), self._scores(self.study.arms[0])]
        return self._paired(scores, scores_at_cost([*measured, 1.0], table, cost))

    def _cost(self, arm: Arm) -> float | None:
        summary = self._summaries[arm.name]
        return summary.prefill_share if self.is_timed else summary.cost_share

    def _random_cost(self, keep: Amount) -> float | None:
        costs = [self._cost(arm) for arm in self._random_arms(keep)]
        measured = [cost for cost in costs if cost is not None]
        return float(np.mean(measured)) if len(measured) == len(costs) else None

    def _scores(self, arm: Arm) -> npt.NDArray[np.float64]:
        return np.asarray(self.study.scores(arm, self._samples), dtype=np.float64)

    def _mean(self, scores: npt.NDArray[np.float64]) -> Estimate:
        seed = self.study.plan.seed
        return mean_estimate(scores.tolist(), self._clusters, draws=DRAWS, seed=seed)

    def _paired(
        self, scores: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
    ) -> Estimate:
        return paired_difference(scores.tolist(), reference.tolist(), self._clusters)


def _flat(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    values: Sequence[float | None] = (
        (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    )
    return dict(zip((name, f"{name} low", f"{name} high"), values, strict=True))
