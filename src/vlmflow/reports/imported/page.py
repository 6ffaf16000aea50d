"""The page of imported runs: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.reports.imported.figure import imported_figure, note
from vlmflow.reports.imported.sentences import cautions, second_line
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.studies.imported.sentences import headline
from vlmflow.studies.truncations.choice import SAFE
from vlmflow.studies.truncations.sentences import (
    MISSING,
    NAME_SHOWN,
    changed_by,
    difference_words,
    points,
    score_words,
)

if TYPE_CHECKING:
    from vlmflow.studies.imported.rows import ImportedRow
    from vlmflow.studies.imported.study import ImportedStudy

ANSWERS_SHOWN, TEXT_SHOWN = 50, 300


def imported_page(study: ImportedStudy) -> str:
    """Write imported runs as one page of HTML; texts are escaped, and it has no scripts."""
    answers = _answers(study)
    return plain_page("imported.html.j2").render(
        headline=headline(study.rows, study.max_loss),
        second=second_line(study),
        cautions=cautions(study),
        figure=inline_figure(
            lambda layout: imported_figure(study, layout),
            "Points of every run against the untouched one, with intervals; every number is in "
            "the tables below",
        ),
        note=note(study),
        max_loss=points(study.max_loss),
        tables=[
            {
                "task": shown(task, NAME_SHOWN),
                "metric": shown(study.metrics[task], NAME_SHOWN),
                "count": len(samples),
                "rows": [_row(row) for row in study.rows if row.task == task],
            }
            for task, samples in study.samples.items()
        ],
        answers=answers[:ANSWERS_SHOWN],
        answers_hidden=max(0, len(answers) - ANSWERS_SHOWN),
        settings=[
            *(
                (f"run {shown(arm.name, NAME_SHOWN)}", arm.arguments or MISSING)
                for arm in study.arms
            ),
            *(
                (f"answers to {shown(task, NAME_SHOWN)}", text)
                for task, text in study.settings.items()
            ),
            ("seed of bootstraps and tests", study.seed),
        ],
    )


def _row(row: ImportedRow) -> dict[str, Any]:
    return {
        "name": shown(row.arm.name, NAME_SHOWN),
        "what": "" if row.arm.kind in ("truncation", row.arm.name) else row.arm.kind,
        "is_safe": row.verdict == SAFE,
        "is_control": row.arm.kind != "truncation",
        "score": score_words(row.score),
        "difference": difference_words(row.difference),
        "p": _p_value(row.adjusted),
        "agreement": score_words(row.agreement),
        "verdict": row.verdict,
        "against": [
            f"{shown(name, NAME_SHOWN)}: {changed_by(estimate)}" for name, estimate in row.against
        ],
    }


def _answers(study: ImportedStudy) -> list[dict[str, str]]:
    """List the answers that some run changed."""
    own, *others = (arm.name for arm in study.arms)
    rows = []
    for samples in study.samples.values():
        for sample in samples:
            untouched = study.answers[own, sample.id]
            changed = [name for name in others if study.answers[name, sample.id] != untouched]
            rows += [
                {
                    "question": shown(sample.question, TEXT_SHOWN),
                    "target": shown(" | ".join(json.loads(sample.refs)), TEXT_SHOWN),
                    "own": shown(untouched, TEXT_SHOWN),
                    "run": shown(name, NAME_SHOWN),
                    "answer": shown(study.answers[name, sample.id], TEXT_SHOWN),
                }
                for name in changed
            ]
    return rows


def _p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"
