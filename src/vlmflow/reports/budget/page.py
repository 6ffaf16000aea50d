"""The page of a token budget: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.reports.budget.figure import budget_figure, note
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.studies.budget import sentences
from vlmflow.studies.budget.sentences import NAME_SHOWN

if TYPE_CHECKING:
    from vlmflow.statistics.intervals import Estimate
    from vlmflow.studies.budget.findings import BudgetRow, Way
    from vlmflow.studies.budget.result import TokenBudget

TEXT_SHOWN, FAILURES_SHOWN = 600, 100


def budget_page(result: TokenBudget) -> str:
    """Write a token budget as one page of HTML; texts are escaped, and it has no scripts."""
    smallest = result.smallest
    return plain_page("budget.html.j2").render(
        model=shown(str(result.model["name"]), NAME_SHOWN),
        headline=sentences.headline(result),
        second=sentences.second_line(result),
        compared=sentences.compared_words(result),
        promise=sentences.promise_words(result),
        confidence=f"{100 * result.settings.confidence:g} %",
        figure=inline_figure(
            lambda layout: budget_figure(result, layout),
            "Score and changed answers over the number of image tokens; every number is in the "
            "table below",
        ),
        note=note(result),
        untouched=_cells(result.untouched, result.measured),
        rows=[_row(row, result.measured) for row in result.rows],
        layer=result.settings.layer,
        to_set=[]
        if smallest is None
        else [(place, shown(text, TEXT_SHOWN)) for place, text in sentences.what_to_set(smallest)],
        failures=[shown(text, TEXT_SHOWN) for text in result.failures[:FAILURES_SHOWN]],
        failed=len(result.failures),
        settings={**vars(result.settings), **result.model, **result.versions},
    )


def _row(row: BudgetRow, measured: int) -> dict[str, object]:
    verdict = "promised" if row.accepted else "not tested" if row.p_value is None else "failed"
    return {
        "name": shown(row.name, NAME_SHOWN),
        "verdict": verdict,
        "p_value": "" if row.p_value is None else f"p {row.p_value:.2g}",
        "own": _cells(row.way, measured),
        "truncated": None if row.truncated is None else _cells(row.truncated, measured),
        "why_not": shown(row.why_not, TEXT_SHOWN),
        "apart": _points(row.difference),
        "apart_p": ""
        if row.difference_p_value is None
        else f"corrected p {row.difference_p_value:.2g}",
    }


def _cells(way: Way, measured: int) -> dict[str, str]:
    low, high = wilson_interval(way.changed, measured)
    return {
        "tokens": f"{way.tokens:.0f}",
        "score": f"{100 * way.score:.1f}",
        "gain": _points(way.gain),
        "changed": f"{100 * way.changed / measured:.1f} %",
        "changed_ends": f"{100 * low:.1f} to {100 * high:.1f}",
        "seconds": "" if way.seconds is None else f"{1000 * way.seconds:.0f} ms",
    }


def _points(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
