"""A published table beside what was measured: one HTML file that opens offline, without scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.reports.plain_page import plain_page
from vlmflow.reproductions import sentences
from vlmflow.reproductions.verdicts import OUTSIDE

if TYPE_CHECKING:
    from vlmflow.reproductions.reproduction import Reproduction, Row


def reproduction_page(reproduction: Reproduction) -> str:
    """Write a reproduction as one page of HTML; texts are escaped."""
    request = reproduction.request
    table = request.table
    return plain_page("reproduction.html.j2").render(
        model=shown(request.model_name, sentences.NAME_SHOWN),
        table=table,
        headline=sentences.headline(reproduction),
        cautions=sentences.cautions(reproduction),
        rule=sentences.RULE,
        groups=[
            (data.task, [_row(row, table.digits) for row in reproduction.compared
                         if row.published.data == data.task])
            for data in request.data
        ],
        has_changes=any(row.published.is_removal for row in reproduction.compared),
        not_run=[
            (reason, [_missing(row, table.digits) for row in rows])
            for reason, rows in sentences.reasons(reproduction.rows)
        ],
        settings={**request.to_json(), **reproduction.model},
    )  # fmt: skip


def _row(row: Row, digits: int) -> dict[str, Any]:
    measured, change = row.measured, row.printed_change
    assert measured is not None
    return {
        "figure": row.published.figure,
        "arm": row.arm,
        "doubt": row.published.doubt,
        "printed": sentences.figure_words(row.published.value, digits),
        "measured": sentences.estimate_words(measured.estimate, digits),
        "difference": sentences.estimate_words(row.difference, digits, signed=True),
        "count": f"{measured.count:,}",
        "verdict": row.verdict,
        "is_outside": row.verdict == OUTSIDE,
        "printed_change": ""
        if change is None
        else sentences.figure_words(change, digits, signed=True),
        "change": sentences.estimate_words(measured.change, digits, signed=True),
        "change_verdict": row.change_verdict,
        "change_is_outside": row.change_verdict == OUTSIDE,
    }


def _missing(row: Row, digits: int) -> dict[str, str]:
    return {
        "model": row.published.model,
        "what": f"{row.published.data}, {row.published.figure}",
        "arm": row.arm,
        "printed": sentences.figure_words(row.published.value, digits),
        "doubt": row.published.doubt,
    }
