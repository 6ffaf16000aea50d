"""The page of a study: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.reports.escape_invisible import shown
from vlmflow.reports.plain_page import embedded, plain_page
from vlmflow.reports.study import tables
from vlmflow.reports.study.curves import study_curves
from vlmflow.reports.study.figure import study_figure
from vlmflow.reports.study.sentences import (
    NAME_SHOWN,
    cautions,
    headline,
    percent,
    points,
    second_line,
    setting_words,
)

if TYPE_CHECKING:
    from vlmflow.studies.truncations.results import Outcome


def study_page(outcome: Outcome) -> str:
    """Write a study as one page of HTML.

    Parameters
    ----------
    outcome : Outcome
        What :func:`vlmflow.studies.truncations.results.read_outcome` read.

    Returns
    -------
    str
        The page. Texts of samples, settings and model are escaped; it has no scripts.
    """
    best, compared = outcome.recommendation, tables.answered_setting(outcome)
    curves = study_curves(outcome)
    figure_names, figures = tables.figure_table(outcome)
    answers = [] if compared is None else tables.answer_rows(outcome, compared)
    return plain_page("study.html.j2").render(
        task=shown(outcome.task.name, NAME_SHOWN),
        metric=shown(outcome.task.metric, NAME_SHOWN),
        model=shown(str(outcome.about["model"]["name"]), NAME_SHOWN),
        headline=headline(outcome),
        second=second_line(outcome),
        cautions=cautions(outcome),
        max_loss=points(outcome.plan.max_loss),
        figure=embedded(study_figure(outcome)),
        curves=None if curves is None else embedded(curves),
        splits={split: tables.setting_rows(outcome, split) for split in ("test", "calibration")},
        figure_names=figure_names,
        figures=figures,
        failure_counts=tables.failure_counts(outcome),
        failures=tables.failure_rows(outcome),
        failures_hidden=max(0, len(outcome.failures) - tables.FAILURES_SHOWN),
        compared=None if compared is None else setting_words(compared),
        is_recommended=best is not None,
        answers=answers,
        answers_hidden=len(outcome.samples["test"]) - len(answers),
        same=None if compared is None else _same(outcome, compared.name),
        settings=tables.settings_table(outcome),
    )


def _same(outcome: Outcome, name: str) -> str:
    """Say how many test answers stay the untouched model's."""
    for line in outcome.lines:
        if line.split == "test" and line.setting.name == name:
            return percent(line.loyalty.value)
    return percent(None)
