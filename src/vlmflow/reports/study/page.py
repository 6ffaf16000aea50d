"""The page of a study: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.reports.study import curves, figure, tables
from vlmflow.reports.study.sentences import cautions, headline, second_line
from vlmflow.studies.truncations.sentences import NAME_SHOWN, arm_words, percent, points

if TYPE_CHECKING:
    from vlmflow.studies.truncations.results import StudyResult


def study_page(study: StudyResult) -> str:
    """Write a study as one page of HTML; texts are escaped, and it has no scripts."""
    best, compared = study.recommendation, tables.answered_arm(study)
    figure_names, figures = tables.figure_table(study)
    answers = [] if compared is None else tables.answer_rows(study, compared)
    return plain_page("study.html.j2").render(
        task=shown(study.task.name, NAME_SHOWN),
        metric=shown(study.task.metric, NAME_SHOWN),
        model=shown(str(study.about["model"]["name"]), NAME_SHOWN),
        headline=headline(study),
        second=second_line(study),
        cautions=cautions(study),
        max_loss=points(study.plan.max_loss),
        figure=inline_figure(
            lambda layout: figure.study_figure(study, layout),
            "Scores of all arms on the test samples against the operations of the prefill, and "
            "against its measured time where that is known; every number is in the table below",
        ),
        figure_note=shown(figure.note(study), NAME_SHOWN * 4),
        figure_key=[
            (number, shown(arm.name, NAME_SHOWN)) for number, arm in figure.numbered_arms(study)
        ],
        curves=inline_figure(
            lambda layout: curves.study_curves(study, layout),
            "Scores on the test samples against the layer of truncation, one curve per number of "
            "tokens kept",
        )
        if curves.curves_of(study)
        else None,
        curves_note=shown(curves.note(study), NAME_SHOWN * 4),
        splits={split: tables.arm_rows(study, split) for split in ("test", "calibration")},
        figure_names=figure_names,
        figures=figures,
        failure_counts=tables.failure_counts(study),
        failures=tables.failure_rows(study),
        failures_hidden=max(0, len(study.failures) - tables.FAILURES_SHOWN),
        compared=None if compared is None else arm_words(compared),
        is_recommended=best is not None,
        answers=answers,
        answers_hidden=len(study.samples["test"]) - len(answers),
        same=None if compared is None else _same(study, compared.name),
        settings=tables.settings_table(study),
    )


def _same(study: StudyResult, name: str) -> str:
    """Say how many test answers stay the untouched model's."""
    for summary in study.summaries:
        if summary.split == "test" and summary.arm.name == name:
            return percent(summary.agreement.value)
    return percent(None)
