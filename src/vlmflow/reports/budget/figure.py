"""The picture of a token budget: score against image tokens, of smaller pictures and truncation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import figure_style, title_and_note
from vlmflow.reports.palette import GREY, SERIES
from vlmflow.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from vlmflow.studies.budget.findings import Way
    from vlmflow.studies.budget.result import TokenBudget

_PANEL, _HEAD = 2.8, 0.6  # Inches


def budget_figure(result: TokenBudget, layout: FigureLayout = FILE) -> Figure:
    """Draw score and changed answers over the tokens that a picture may take."""
    rows = 2 // layout.columns
    height = rows * _PANEL + (_HEAD if layout.titled else 0.25)
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        scores, changes = np.ravel(figure.subplots(rows, layout.columns))
        figure.subplots_adjust(
            0.62 / layout.width, 0.5 / height, 0.98, 1 - (height - rows * _PANEL + 0.2) / height,
            0.27, 0.42,
        )  # fmt: skip
        _score_panel(scores, result)
        _changes_panel(changes, result)
        if layout.titled:
            title = f"{result.task} on {result.model['name']}"
            title_and_note(figure, title, note(result))
    return figure


def note(result: TokenBudget) -> str:
    """Say what is drawn how."""
    return (
        f"{result.measured} new samples; bars: 95 % intervals of each difference to untouched; "
        f"filled: promised on {result.tested} calibration samples; truncation from layer "
        f"{result.settings.layer} on is drawn at the smaller picture that costs the decoder as much"
    )


def _score_panel(axes: Axes, result: TokenBudget) -> None:
    axes.axhline(result.untouched.score, color=GREY, linewidth=0.8, linestyle=":")
    places = _places(result)
    _line(axes, places, [row.way for row in result.rows], result, 0, "smaller picture")
    truncated = [row.truncated for row in result.rows if row.truncated is not None]
    if truncated:
        # At the place of the smaller picture that costs as much, not at the tokens that stay.
        at = [place for place, row in zip(places, result.rows, strict=True) if row.truncated]
        _line(axes, at, truncated, result, 1, "truncated at its cost")
    for place, row in zip(places, result.rows, strict=True):
        if row.accepted:
            axes.plot([place], [row.way.score], "o", color=SERIES[0], markersize=6)
    axes.set_ylabel(result.metric[:40])
    _x_axis(axes)
    axes.legend(frameon=False, loc="best", handletextpad=0.4)


def _line(
    axes: Axes,
    places: Sequence[float],
    ways: Sequence[Way],
    result: TokenBudget,
    colour: int,
    label: str,
) -> None:
    scores = [way.score for way in ways]
    axes.plot(
        places, scores, color=SERIES[colour], marker="o" if colour == 0 else "s", markersize=5,
        markerfacecolor="none", label=label, linestyle="-" if colour == 0 else "--",
    )  # fmt: skip
    for place, way in zip(places, ways, strict=True):
        if way.gain is not None:
            ends = [result.untouched.score + way.gain.low, result.untouched.score + way.gain.high]
            axes.plot([place, place], ends, color=SERIES[colour], linewidth=0.9, alpha=0.8)


def _changes_panel(axes: Axes, result: TokenBudget) -> None:
    places = _places(result)
    shares = [row.way.changed / result.measured for row in result.rows]
    ends = [wilson_interval(row.way.changed, result.measured) for row in result.rows]
    axes.plot(
        places, shares, color=SERIES[0], marker="o", markersize=5, markerfacecolor="none",
        label="smaller picture",
    )  # fmt: skip
    for place, (low, high) in zip(places, ends, strict=True):
        axes.plot([place, place], [low, high], color=SERIES[0], linewidth=0.9, alpha=0.8)
    if result.settings.risk is not None:
        axes.axhline(result.settings.risk, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("answers changed")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _x_axis(axes)


def _places(result: TokenBudget) -> list[float]:
    return [max(row.way.tokens, 0.5) for row in result.rows]


def _x_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("image tokens in a prompt, on average")
