"""The page of a comparison of rankings: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.reports.comparison import sentences
from vlmflow.reports.comparison.figure import comparison_figure, note
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.studies.comparison.rows import UNKNOWN
from vlmflow.studies.comparison.sentences import headline, keep_words
from vlmflow.studies.truncations.sentences import NAME_SHOWN, difference_words, score_words

if TYPE_CHECKING:
    from vlmflow.studies.comparison.comparison import Comparison
    from vlmflow.studies.comparison.rows import ComparedRow
    from vlmflow.truncation.amounts import Amount


def comparison_page(comparison: Comparison) -> str:
    """Write a comparison as one page of HTML; texts are escaped, and it has no scripts."""
    study = comparison.study
    return plain_page("comparison.html.j2").render(
        model=shown(str(study.about["model"]["name"]), NAME_SHOWN),
        metric=shown(study.task.metric, NAME_SHOWN),
        headline=headline(study.task.name, comparison.layer, comparison.keeps, comparison.rows),
        second=sentences.second_line(comparison),
        cost=sentences.cost_words(comparison),
        cautions=sentences.cautions(comparison),
        figure=inline_figure(
            lambda layout: comparison_figure(comparison, layout),
            "How many points each ranking is above random tokens, by how many tokens stay; every "
            "number is in the tables below",
        ),
        note=note(comparison),
        tables=[_table(comparison, keep) for keep in comparison.keeps],
        settings=dict(_settings(comparison)),
    )


def _settings(comparison: Comparison) -> list[tuple[str, object]]:
    study = comparison.study
    return [
        ("task", study.task.name),
        ("layer", comparison.layer),
        ("test samples", comparison.count),
        ("draws of random tokens", comparison.draws),
        ("timed samples", study.plan.timed),
        ("seed", study.plan.seed),
        *study.about["model"].items(),
        ("machine", study.about["machine"]),
        *study.about["versions"].items(),
    ]


def _table(comparison: Comparison, keep: Amount) -> dict[str, Any]:
    drawn = comparison.random_rows[keep]
    rows = [row for row in comparison.rows if row.keep == keep]
    return {
        "keep": keep_words(keep),
        "random": {
            "score": score_words(drawn.score),
            "lost": difference_words(drawn.lost),
            "cost": _cost(drawn.cost),
        },
        "rows": [_row(row) for row in sorted(rows, key=lambda row: -row.gain.value)],
    }


def _row(row: ComparedRow) -> dict[str, Any]:
    return {
        "name": shown(row.ranking.title, NAME_SHOWN),
        "what": "looks at the answer" if row.ranking.is_oracle else "",
        "score": score_words(row.score),
        "lost": difference_words(row.lost),
        "gain": difference_words(row.gain),
        "p": "<0.001" if row.adjusted < 0.001 else f"{row.adjusted:.3f}",
        "cost": _cost(row.cost),
        "at_cost": ("", "") if row.gain_at_cost is None else difference_words(row.gain_at_cost),
        "verdict": row.verdict,
        "is_shown": row.verdict != UNKNOWN,
    }


def _cost(cost: float | None) -> str:
    return "" if cost is None else f"{cost:.2f}"
