"""The picture of a comparison: how far every ranking is above random tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import drawable, figure_style, fit, title_and_note
from vlmflow.reports.palette import GREY, LIGHT, SERIES
from vlmflow.studies.comparison.arms import is_uniform
from vlmflow.studies.comparison.rows import UNKNOWN
from vlmflow.studies.comparison.sentences import keep_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.studies.comparison.comparison import Comparison
    from vlmflow.studies.comparison.rows import ComparedRow
    from vlmflow.truncation.amounts import Amount
    from vlmflow.truncation.rankings.ranking import Ranking

# Inches
_HEAD, _FOOT, _ROW, _NAMES, _TOP, _GAP = 0.45, 0.42, 0.2, 1.55, 0.42, 0.16
_SIZE = FontProperties(size=7.5)


def comparison_figure(comparison: Comparison, layout: FigureLayout = FILE) -> Figure:
    """Draw every ranking's difference to random tokens: one panel per number of tokens.

    Filled marks are shown to differ from random tokens after Holm's correction.
    """
    keeps = comparison.keeps
    columns = 1 if layout.is_narrow else len(keeps)
    rows = len(keeps) // columns
    panel = _TOP + _ROW * (len(comparison.rankings) + 0.6) + _FOOT
    head = _HEAD * layout.titled + 0.05
    height = head + rows * panel
    width = (layout.width - _NAMES - 0.1) / columns
    reach = [
        value for row in comparison.rows for value in (100 * row.gain.low, 100 * row.gain.high)
    ]
    low, high = min(0.0, *reach), max(0.0, *reach)
    margin = 0.05 * max(high - low, 1.0)
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        for place, keep in enumerate(keeps):
            row, column = divmod(place, columns)
            axes = figure.add_axes(
                (
                    (_NAMES + column * width + _GAP / 2) / layout.width,
                    1 - (head + (row + 1) * panel - _FOOT) / height,
                    (width - _GAP) / layout.width,
                    (panel - _TOP - _FOOT) / height,
                )
            )
            axes.set_xlim(low - margin, high + margin)
            _panel(axes, comparison, keep, named=column == 0)
        if layout.titled:
            name = str(comparison.study.about["model"]["name"])[:200]
            title = f"{comparison.study.task.name[:200]} on {name}, layer {comparison.layer}"
            title_and_note(figure, title, note(comparison))
    return figure


def note(comparison: Comparison) -> str:
    """Say what is drawn how."""
    return (
        f"{comparison.count} test samples; bars are 95 % intervals of paired differences; filled: "
        f"shown to differ (Holm, {len(comparison.rows)} tests)"
    )


def _panel(axes: Axes, comparison: Comparison, keep: Amount, *, named: bool) -> None:
    rankings = comparison.rankings
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    for height, ranking in enumerate(reversed(rankings)):
        row = comparison.row(ranking, keep)
        colour = _colour(ranking)
        axes.plot(
            [100 * row.gain.low, 100 * row.gain.high], [height, height], color=colour,
            linewidth=1.2, solid_capstyle="butt", zorder=2,
        )  # fmt: skip
        axes.plot(
            [100 * row.gain.value], [height], marker=_mark(ranking), markersize=5, color=colour,
            markerfacecolor=_fill(row, colour), markeredgewidth=1.1, zorder=3,
        )  # fmt: skip
    axes.set_ylim(-0.8, len(rankings) - 0.2)
    names = [fit(drawable(r.title), _NAMES - 0.1, _SIZE) for r in reversed(rankings)]
    axes.set_yticks(range(len(rankings)), names if named else [""] * len(rankings), fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+.0f}" if value else "0")
    )
    drawn = comparison.random_rows[keep].score.value
    axes.set_title(
        f"keep {keep_words(keep)}\nrandom {100 * drawn:.1f} %", loc="left", fontsize=8, pad=4
    )
    if named:
        axes.set_xlabel("points above random tokens", loc="left")


def _fill(row: ComparedRow, colour: str) -> str:
    return LIGHT["paper"] if row.verdict == UNKNOWN else colour


def _colour(ranking: Ranking) -> str:
    if ranking.is_oracle:
        return SERIES[3]
    return GREY if is_uniform(ranking) else SERIES[1]


def _mark(ranking: Ranking) -> str:
    return "D" if ranking.is_oracle else "s" if is_uniform(ranking) else "o"
