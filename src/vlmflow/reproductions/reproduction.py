"""A published table beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from vlmflow.reproductions.figures import CURVES, FIGURES, Measured, measure, scale_of
from vlmflow.reproductions.published import PublishedFigure
from vlmflow.reproductions.request import Request
from vlmflow.reproductions.verdicts import OUTSIDE, UNKNOWN, WITHIN, change_verdict, verdict
from vlmflow.statistics.intervals import Estimate
from vlmflow.studies.faithfulness.study import FaithfulnessStudy
from vlmflow.studies.samples import task_sample
from vlmflow.studies.truncations.arms import Arm, label
from vlmflow.studies.truncations.results import StudyResult
from vlmflow.truncation.truncation import Truncation
from vlmflow.trust.variants import PROBABILITY
from vlmflow.version import __version__


@dataclass(frozen=True)
class Row:
    """One printed figure, and what was measured.

    Parameters
    ----------
    published : PublishedFigure
        As printed.
    measured : Measured or None
        None where it was not run, or no sample was answered.
    why_not : str
        Why it was not run.
    verdict, change_verdict : str
        By the rule of :mod:`vlmflow.reproductions.verdicts`; empty where there is nothing to judge.
    """

    published: PublishedFigure
    measured: Measured | None
    why_not: str
    verdict: str
    change_verdict: str

    @property
    def difference(self) -> Estimate | None:
        """Measured minus printed; its interval is that of the measured figure."""
        if self.measured is None:
            return None
        own, printed = self.measured.estimate, self.published.value
        return Estimate(own.value - printed, own.low - printed, own.high - printed)

    @property
    def printed_change(self) -> float | None:
        """The printed change to the untouched model."""
        before = self.published.untouched
        return None if before is None else self.published.value - before

    @property
    def arm(self) -> str:
        """What was done to the model, or whose map was tested."""
        if self.published.signal:
            return self.published.signal
        if self.published.policy:
            return label(Truncation.parse(self.published.policy))
        return "truncated" if self.published.is_removal else "untouched"


@dataclass(frozen=True, eq=False)
class Reproduction:
    """A table run again: every printed figure beside the measured one.

    Parameters
    ----------
    request : Request
        Table, model, and how much of it was run.
    studies : mapping of str to StudyResult or FaithfulnessStudy
        Finished studies, by data set.
    """

    request: Request
    studies: Mapping[str, StudyResult | FaithfulnessStudy]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every figure of the table: those of the model first, then those of others."""
        table, own = self.request.table, self.request.published_model.called
        figures = sorted(table.figures, key=lambda figure: figure.model != own)
        return tuple(map(self._row, figures))

    @property
    def compared(self) -> tuple[Row, ...]:
        """Rows that were run."""
        return tuple(row for row in self.rows if row.measured is not None)

    @property
    def model(self) -> Mapping[str, Any]:
        """What was run: :meth:`vlmflow.lvlm.model.LVLM.config_summary`."""
        study = next(iter(self.studies.values()))
        return study.model if isinstance(study, FaithfulnessStudy) else study.about["model"]

    @property
    def failed(self) -> dict[str, int]:
        """Samples that some arm failed on, by data set, where there are any."""
        counts = {name: len(study.failures) for name, study in self.studies.items()}
        return {name: count for name, count in counts.items() if count}

    def verdicts(self) -> dict[str, int]:
        """Count the figures by verdict."""
        counts = dict.fromkeys((WITHIN, OUTSIDE, UNKNOWN), 0)
        for row in self.compared:
            counts[row.verdict] += 1
        return counts

    def frame(self) -> pd.DataFrame:
        """One row per printed figure, flat."""
        return pd.DataFrame([_flat(row) for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Return everything, for JSON; ``request`` is what it is read back with."""
        frame, table = self.frame(), self.request.table
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        texts = ("name", "title", "paper", "where", "protocol", "differences", "doubts", "left_out")
        return {
            "vlmflow": __version__,
            "request": self.request.to_json(),
            "table": {name: getattr(table, name) for name in texts},
            "model": dict(self.model),
            "failed": self.failed,
            "rows": rows,
        }

    def _row(self, figure: PublishedFigure) -> Row:
        why = self.request.why_not(figure)
        study = self.studies.get(figure.data)
        if not why and study is None:
            why = "not run yet"
        if why or study is None:
            return Row(figure, None, why, "", "")
        if isinstance(study, FaithfulnessStudy):
            measured: Measured | None = _of_map(study, figure)
        else:
            measured = _of_answers(study, figure, self.request.seed)
        if measured is None:
            return Row(figure, None, "no sample was answered", "", "")
        scale = scale_of(figure.figure)
        of_change = ""
        if figure.untouched is not None:
            of_change = change_verdict(figure.value - figure.untouched, measured, scale)
        return Row(figure, measured, "", verdict(figure.value, measured, scale), of_change)


def arm_of(study: StudyResult, figure: PublishedFigure) -> Arm:
    """Return the arm that a figure is about."""
    if not figure.policy:
        return study.arms[0]
    policy = Truncation.parse(figure.policy)
    return next(arm for arm in study.arms if arm.truncation == policy)


def _of_answers(study: StudyResult, figure: PublishedFigure, seed: int) -> Measured | None:
    arm, untouched = arm_of(study, figure), study.arms[0]
    samples = study.answered_by((arm, untouched), "test")
    if not samples:
        return None
    kind = FIGURES[figure.figure]
    questions = [task_sample(sample) for sample in samples]

    def counts(of: Arm) -> np.ndarray[Any, np.dtype[np.float64]]:
        answers = [study.answers[sample.id, of.name].answer or "" for sample in samples]
        return kind.counts(study.task, questions, answers)

    before = counts(untouched) if figure.is_removal else None
    return measure(kind, counts(arm), before, [sample.cluster for sample in samples], seed)


def _of_map(study: FaithfulnessStudy, figure: PublishedFigure) -> Measured | None:
    assert figure.figure in CURVES
    frame = study.map_frame()
    chosen = (
        (frame["map"] == figure.signal)
        & (frame["score"] == PROBABILITY)
        & (frame["replacement"] == study.settings.shown[0])
    )
    row = frame[chosen].iloc[0]
    if not row["n"]:
        return None
    ends = (float(row[f"{figure.figure} {end}"]) for end in ("low", "high"))
    return Measured(Estimate(float(row[figure.figure]), *ends), None, int(row["n"]))


def _flat(row: Row) -> dict[str, Any]:
    published, measured = row.published, row.measured
    flat: dict[str, Any] = {
        "model": published.model,
        "data": published.data,
        "figure": published.figure,
        "arm": row.arm,
        "published": published.value,
    }
    estimates = {
        "measured": None if measured is None else measured.estimate,
        "difference": row.difference,
        "change": None if measured is None else measured.change,
    }
    for name, estimate in estimates.items():
        if name == "change":
            flat["published change"] = row.printed_change
        plain = {"value": None, "low": None, "high": None} if estimate is None else asdict(estimate)
        flat |= {name: plain["value"], f"{name} low": plain["low"], f"{name} high": plain["high"]}
    return flat | {
        "n": None if measured is None else measured.count,
        "verdict": row.verdict,
        "change verdict": row.change_verdict,
        "doubt": published.doubt,
        "not run": row.why_not,
    }
