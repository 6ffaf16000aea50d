"""The picture of imported runs: how far every run is from the untouched one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import drawable, figure_style, fit, title_and_note
from vlmflow.reports.palette import GREY, LIGHT, SERIES
from vlmflow.studies.truncations.choice import SAFE
from vlmflow.studies.truncations.sentences import points

if TYPE_CHECKING:
    from vlmflow.studies.imported.rows import ImportedRow
    from vlmflow.studies.imported.study import ImportedStudy

# Inches
_HEAD, _FOOT, _ROW, _NAMES, _TOP = 0.45, 0.42, 0.2, 2.1, 0.1
_SIZE = FontProperties(size=7.5)
SHOWN = 60
"""Rows of a picture; the table has all."""


def imported_figure(study: ImportedStudy, layout: FigureLayout = FILE) -> Figure:
    """Draw the paired difference of every run to the untouched one, with its interval.

    Filled marks are shown to lose at most what is allowed, which the dotted line stands for.
    """
    rows = [row for row in study.rows if row.difference is not None][:SHOWN]
    panel = _TOP + _ROW * (len(rows) + 0.6) + _FOOT
    height = _HEAD * layout.titled + panel
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        axes = figure.add_axes(
            (
                _NAMES / layout.width,
                _FOOT / height,
                (layout.width - _NAMES - 0.15) / layout.width,
                (panel - _TOP - _FOOT) / height,
            )
        )
        axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
        axes.axvline(-100 * study.max_loss, color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)))
        for place, row in enumerate(reversed(rows)):
            assert row.difference is not None
            colour = SERIES[1] if row.arm.kind == "truncation" else GREY
            axes.plot(
                [100 * row.difference.low, 100 * row.difference.high], [place, place],
                color=colour, linewidth=1.2, solid_capstyle="butt", zorder=2,
            )  # fmt: skip
            axes.plot(
                [100 * row.difference.value], [place], marker="o", markersize=5, color=colour,
                markerfacecolor=colour if row.verdict == SAFE else LIGHT["paper"],
                markeredgewidth=1.1, zorder=3,
            )  # fmt: skip
        axes.set_ylim(-0.8, len(rows) - 0.2)
        names = [fit(drawable(_name(study, row)), _NAMES - 0.1, _SIZE) for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), names, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.0f}" if value else "0")
        )
        axes.set_xlabel("points against the untouched run", loc="left")
        if layout.titled:
            tasks = ", ".join(study.samples)
            title_and_note(figure, f"Truncation in lmms-eval: {tasks[:200]}", note(study))
    return figure


def note(study: ImportedStudy) -> str:
    """Say what is drawn how."""
    return (
        "bars are 95 % intervals of paired differences; grey: controls; filled: shown to lose at "
        f"most {points(study.max_loss)} (dotted)"
    )


def _name(study: ImportedStudy, row: ImportedRow) -> str:
    return row.arm.name if len(study.samples) == 1 else f"{row.task}: {row.arm.name}"
