"""What imported runs say: what every truncation cost on every task, with its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference
from vlmflow.statistics.loss_tests import holm, loss_p_value
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value
from vlmflow.studies.comparison.rows import ALPHA
from vlmflow.studies.imported.arms import ImportedArm
from vlmflow.studies.imported.rows import ImportedRow
from vlmflow.studies.imported.sentences import headline
from vlmflow.studies.samples import StoredSample
from vlmflow.studies.truncations.arms import UNTOUCHED
from vlmflow.studies.truncations.choice import SAFE, UNKNOWN, UNSAFE
from vlmflow.studies.truncations.results import DRAWS
from vlmflow.studies.truncations.sentences import NAME_SHOWN, difference_words, percent


@dataclass(frozen=True, eq=False)
class ImportedStudy:
    """Runs of lmms-eval over the same samples, one of them untouched.

    Parameters
    ----------
    arms : tuple of ImportedArm
        The runs, the untouched one first.
    samples : mapping of str to tuple of StoredSample
        Of every task, without pictures.
    answers, scores : mapping of (str, str) to str, or to float
        By the run's name and the sample's id.
    metrics : mapping of str to str
        What the score is, by task.
    settings : mapping of str to str
        Of every task, how answers were generated, as JSON.
    max_loss : float
        Loss of score that a truncation may cost.
    seed : int
        Of bootstraps and tests.
    """

    arms: tuple[ImportedArm, ...]
    samples: Mapping[str, tuple[StoredSample, ...]]
    answers: Mapping[tuple[str, str], str]
    scores: Mapping[tuple[str, str], float]
    metrics: Mapping[str, str]
    settings: Mapping[str, str]
    max_loss: float
    seed: int

    @cached_property
    def rows(self) -> tuple[ImportedRow, ...]:
        """Every run on every task, the untouched one first."""
        rows = [self._row(task, arm) for task in self.samples for arm in self.arms]
        compared = [place for place, row in enumerate(rows) if row.p_value is not None]
        adjusted = holm_adjusted([rows[place].p_value or 0.0 for place in compared])
        for place, corrected in zip(compared, adjusted, strict=True):
            rows[place] = replace(rows[place], adjusted=corrected)
        tried = [place for place, row in enumerate(rows) if row.arm.kind == "truncation"]
        passed = holm([self._loss_p_value(rows[place]) for place in tried])
        for place, is_safe in zip(tried, passed, strict=True):
            rows[place] = replace(rows[place], verdict=self._verdict(rows[place], is_safe))
        return tuple(rows)

    @property
    def names_pictures(self) -> bool:
        """Whether the logs say which samples are about the same pictures."""
        return all(sample.cluster for group in self.samples.values() for sample in group)

    def frame(self) -> pd.DataFrame:
        """One row per task and run: everything of :class:`ImportedRow`, flat."""
        return pd.DataFrame(
            [
                {
                    "task": row.task,
                    "run": row.arm.name,
                    "kind": row.arm.kind,
                    "model_args": row.arm.arguments,
                    "metric": self.metrics[row.task],
                    "n": row.count,
                }
                | _flat("score", row.score)
                | _flat("difference", row.difference)
                | {"p": row.p_value, "p, Holm": row.adjusted, "verdict": row.verdict}
                | _flat("same answer", row.agreement)
                | _flat("difference to random", row.against[0][1] if row.against else None)
                for row in self.rows
            ]
        )

    def sample_frame(self) -> pd.DataFrame:
        """One row per task, document and run: question, target, answer, score."""
        return pd.DataFrame(
            [
                {
                    "task": task,
                    "document": int(sample.key),
                    "run": arm.name,
                    "question": sample.question,
                    "target": sample.refs,
                    "answer": self.answers[arm.name, sample.id],
                    "score": self.scores[arm.name, sample.id],
                    "same answer": self._is_same(arm, sample),
                }
                for task, group in self.samples.items()
                for sample in group
                for arm in self.arms
            ]
        )

    def _repr_html_(self) -> str:
        """Show the finding and one row per run in a notebook."""
        return fragment(
            "vlmflow.studies.imported",
            headline=headline(self.rows, self.max_loss),
            rows=[
                {
                    "task": shown(row.task, NAME_SHOWN),
                    "name": shown(row.arm.name, NAME_SHOWN),
                    "score": percent(row.score.value),
                    "difference": " ".join(difference_words(row.difference)).strip(),
                    "agreement": percent(row.agreement.value),
                    "verdict": row.verdict,
                }
                for row in self.rows
            ],
        )

    def _row(self, task: str, arm: ImportedArm) -> ImportedRow:
        samples = self.samples[task]
        clusters = [sample.cluster for sample in samples]
        scores, own = self._scores(task, arm), self._scores(task, self.arms[0])
        same = [float(self._is_same(arm, sample)) for sample in samples]
        row = ImportedRow(
            task=task,
            arm=arm,
            count=len(samples),
            score=mean_estimate(scores, clusters, draws=DRAWS, seed=self.seed),
            agreement=mean_estimate(same, clusters, draws=DRAWS, seed=self.seed),
        )
        if arm.kind == UNTOUCHED:
            return row
        gains = [score - reference for score, reference in zip(scores, own, strict=True)]
        return replace(
            row,
            difference=paired_difference(scores, own, clusters),
            p_value=sign_flip_p_value(gains, clusters, seed=self.seed),
            against=tuple(
                (other.name, paired_difference(scores, self._scores(task, other), clusters))
                for other in self.arms
                if arm.name in other.of
            ),
        )

    def _loss_p_value(self, row: ImportedRow) -> float:
        own = self._scores(row.task, self.arms[0])
        clusters = [sample.cluster for sample in self.samples[row.task]]
        return loss_p_value(self._scores(row.task, row.arm), own, self.max_loss, clusters)

    def _verdict(self, row: ImportedRow, is_safe: bool) -> str:
        if is_safe:
            return SAFE
        below = row.difference is not None and row.difference.high < -self.max_loss
        stands = row.adjusted is not None and row.adjusted <= ALPHA
        return UNSAFE if below and stands else UNKNOWN

    def _scores(self, task: str, arm: ImportedArm) -> list[float]:
        return [self.scores[arm.name, sample.id] for sample in self.samples[task]]

    def _is_same(self, arm: ImportedArm, sample: StoredSample) -> bool:
        own = self.answers[self.arms[0].name, sample.id]
        return self.answers[arm.name, sample.id] == own


def _flat(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    values: Sequence[float | None] = (
        (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    )
    return dict(zip((name, f"{name} low", f"{name} high"), values, strict=True))
