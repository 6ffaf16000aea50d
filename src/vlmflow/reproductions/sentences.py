"""A table run again in words: its finding, what to bear in mind, its rows as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from vlmflow.escape_invisible import shown
from vlmflow.reproductions.reproduction import Reproduction, Row
from vlmflow.reproductions.verdicts import (
    LEAST,
    OUTSIDE,
    UNKNOWN,
    WIDEST,
    WIDEST_CHANGE,
    WITHIN,
)
from vlmflow.statistics.intervals import Estimate

NAME_SHOWN = 120
MISSING = "–"

RULE = (
    f"Within the interval: the printed figure lies within the measured 95 % interval. Outside it: "
    f"it does not. Cannot tell: fewer than {LEAST} samples, or an interval that reaches more than "
    f"{100 * WIDEST:g} points of 100 to either side ({100 * WIDEST_CHANGE:g} for a change), within "
    "which nearly anything lies."
)
"""The rule of verdicts."""


def headline(reproduction: Reproduction) -> str:
    """Count the figures by verdict, in one sentence."""
    request, counts = reproduction.request, reproduction.verdicts()
    compared, total = len(reproduction.compared), len(reproduction.rows)
    return (
        f"{request.table_name} on {shown(request.model_name, NAME_SHOWN)}: {compared} of {total} "
        f"printed figures measured, {counts[WITHIN]} of them within the measured interval, "
        f"{counts[OUTSIDE]} outside it, {counts[UNKNOWN]} that these samples cannot tell"
    )


def cautions(reproduction: Reproduction) -> list[str]:
    """Say what the intervals mean here, and what is not as it seems."""
    request, published = reproduction.request, reproduction.request.published_model
    lines = []
    if request.model_name != published.hub:
        lines.append(
            f"{shown(request.model_name, NAME_SHOWN)} was run as {published.hub}; whether it is "
            "that model is not checked."
        )
    layers = int(reproduction.model["layers"])
    if layers != published.layers:
        lines.append(
            f"It has {layers} decoder layers and the table's model {published.layers}: it is "
            "another model, and its figures say nothing about the table."
        )
    parts = [data.task for data in request.data if request.count(data) < data.samples]
    if parts:
        lines.append(
            f"Of {', '.join(parts)} only some samples were asked, drawn once for everybody: the "
            "interval says where the figure over all of them may lie."
        )
    if len(parts) < len(request.data):
        lines.append(
            "Where a data set was asked whole, and in the paper too, both figures are of the same "
            "questions: the interval then says what other questions of the kind would do, and a "
            "difference within it may still be one of protocol."
        )
    lines += [
        f"{name}: {count} sample{'s' if count > 1 else ''} failed and "
        f"{'are' if count > 1 else 'is'} left out."
        for name, count in reproduction.failed.items()
    ]
    return lines


def figure_words(value: float, digits: int, *, signed: bool = False) -> str:
    """Write a figure as the table prints it: ``"85.51"``, ``"+0.81"``."""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not float(text):
        return text.lstrip("+-")
    return text.replace("-", "−")


def estimate_words(
    estimate: Estimate | None, digits: int, *, signed: bool = False
) -> tuple[str, str]:
    """Return ``("85.51", "84.60 to 86.40")``."""
    if estimate is None:
        return MISSING, ""
    value, low, high = (
        figure_words(number, digits, signed=signed)
        for number in (estimate.value, estimate.low, estimate.high)
    )
    # Draws of a bootstrap that cannot differ say nothing about other samples.
    return value, "no interval" if estimate.low == estimate.high else f"{low} to {high}"


def in_brackets(words: tuple[str, str]) -> str:
    """Return ``"85.51 (84.60 to 86.40)"``."""
    return f"{words[0]} ({words[1]})" if words[1] else words[0]


def reasons(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Put the rows that were not run together by their reason."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.measured is None:
            groups.setdefault(row.why_not, []).append(row)
    return list(groups.items())


def duration(seconds: float) -> str:
    """Return ``"2 h 10 min"``, ``"3 min"``, ``"40 s"``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
