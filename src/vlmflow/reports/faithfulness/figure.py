"""The pictures of a study of faithfulness: every map's difference, mean curves, and costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from vlmflow.reports.figures.label_places import Label, place_labels
from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import drawable, figure_style, fit, title_and_note
from vlmflow.reports.palette import GREY, SERIES
from vlmflow.studies.faithfulness.maps import RANDOM
from vlmflow.studies.faithfulness.sentences import main_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from vlmflow.studies.faithfulness.study import FaithfulnessStudy

_HEAD, _FOOT, _ROW, _PANEL = 0.45, 0.5, 0.17, 2.4  # Inches
_NAME = 1.8  # Inches for the names of maps
_MARKS = ("o", "s", "D", "^", "v", "P")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
CURVES_SHOWN = 4
"""Signals whose curves are drawn: those with the largest difference."""


def faithfulness_figures(study: FaithfulnessStudy) -> dict[str, Figure]:
    """Draw all figures of a study, by the names of their files."""
    frame = study.map_frame()
    figures = {
        "faithfulness": difference_figure(study, frame),
        "curves": curve_figure(study, frame),
    }
    if study.costs:
        figures["cost"] = cost_figure(study, frame)
    return figures


def difference_figure(
    study: FaithfulnessStudy, frame: pd.DataFrame, layout: FigureLayout = FILE
) -> Figure:
    """Draw insertion minus deletion of every map, one panel per replacement, the best on top."""
    shown = study.settings.shown
    panel = _ROW * len(study.maps) + 0.75
    columns = min(layout.columns, len(shown))
    rows = -(-len(shown) // columns)
    head = _HEAD * layout.titled + 0.05
    height = head + rows * panel
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        for place, replacement in enumerate(shown):
            row, column = divmod(place, columns)
            width = layout.width / columns
            axes = figure.add_axes(
                (
                    (column * width + _NAME) / layout.width,
                    1 - (head + (row + 1) * panel - _FOOT) / height,
                    (width - _NAME - 0.12) / layout.width,
                    (panel - _FOOT - 0.25) / height,
                )
            )
            _differences(axes, study, frame, replacement)
        if layout.titled:
            title = f"{study.task[:200]} on {str(study.model['name'])[:200]}"
            title_and_note(figure, title, note(study))
    return figure


def curve_figure(
    study: FaithfulnessStudy, frame: pd.DataFrame, layout: FigureLayout = FILE
) -> Figure:
    """Draw the mean curves of the best signals and of the random map, per replacement."""
    curves, shown = study.curve_frame(), study.settings.shown
    best = [row["map"] for row in main_table(frame, shown[0]) if row["kind"] == "signal"]
    names = [*best[:CURVES_SHOWN], RANDOM]
    columns = min(layout.columns, len(shown))
    rows = -(-len(shown) // columns)
    lines = len(names) if layout.is_narrow else -(-len(names) // 2)
    head = _HEAD * layout.titled + 0.17 * lines + 0.35
    height = head + rows * _PANEL
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        figure.subplots_adjust(
            0.5 / layout.width, 0.45 / height, 1 - 0.15 / layout.width, 1 - head / height, 0.12,
            0.45,
        )  # fmt: skip
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        handles: list[Any] = []
        for axes, replacement in zip(grid, shown, strict=False):
            handles = _curves(axes, study, curves, replacement, names)
        figure.legend(
            handles, [_name(study, name, 3.0) for name in names], frameon=False, fontsize=7,
            ncols=1 if layout.is_narrow else 2, handlelength=3, loc="upper left",
            bbox_to_anchor=(0, 1 - _HEAD * layout.titled / height), borderaxespad=0.2,
        )  # fmt: skip
        if layout.titled:
            title_and_note(
                figure, f"{study.task[:200]}: answers as pictures appear and vanish", note(study)
            )
    return figure


def cost_figure(
    study: FaithfulnessStudy, frame: pd.DataFrame, layout: FigureLayout = FILE
) -> Figure:
    """Draw the difference of every signal under the first replacement against what it costs."""
    replacement = study.settings.shown[0]
    costs = study.cost_frame().set_index("map")["times a forward pass"]
    rows = [row for row in main_table(frame, replacement) if row["kind"] == "signal"]
    head = _HEAD * layout.titled + 0.3
    height = head + _PANEL + 0.3
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        axes = figure.add_axes(
            (0.6 / layout.width, 0.45 / height, 1 - 0.8 / layout.width, 1 - (head + 0.45) / height)
        )
        axes.set_xscale("log")
        points = np.array([[costs[row["map"]], row["difference"]] for row in rows])
        for row, (cost, value) in zip(rows, points, strict=True):
            style = _style(study, row["map"])
            axes.plot([cost] * 2, [row["difference low"], row["difference high"]],
                      color=style["color"], linewidth=1)  # fmt: skip
            axes.plot([cost], [value], markersize=5, **style)
        axes.axhline(0, color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.8)
        axes.set_xlim(min(1.0, points[:, 0].min() / 1.5), points[:, 0].max() * 2.5)
        axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.15)
        axes.set_ylim(*axes.get_ylim())  # final before labels are placed
        labels = [
            Label(cost, value, drawable(study.about[row["map"]].label)[:60])
            for row, (cost, value) in zip(rows, points, strict=True)
        ]
        place_labels(axes, labels, points, points)
        axes.set_xlabel("seconds of an explanation, one forward pass = 1", loc="left")
        axes.set_title(f"insertion minus deletion, {replacement}", loc="left", fontsize=8)
        if layout.titled:
            title_and_note(figure, f"{study.task[:200]}: what maps cost", note(study))
    return figure


def note(study: FaithfulnessStudy) -> str:
    """Say what is drawn how."""
    return (
        f"{len(study.measured)} test samples; bars are 95 % intervals; grey: controls, which know "
        "nothing of the model"
    )


def _differences(
    axes: Axes, study: FaithfulnessStudy, frame: pd.DataFrame, replacement: str
) -> None:
    rows = main_table(frame, replacement)
    for place, row in enumerate(rows):
        style = _style(study, row["map"])
        axes.plot([row["difference low"], row["difference high"]], [place, place],
                  color=style["color"], linewidth=1.3)  # fmt: skip
        axes.plot([row["difference"]], [place], markersize=4.5, **style)
    axes.axvline(0, color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_name(study, row["map"], _NAME - 0.2) for row in rows])
    axes.tick_params(labelsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_title(drawable(replacement), loc="left", fontsize=8)
    axes.set_xlabel("insertion minus deletion", loc="left", fontsize=7.5)


def _curves(
    axes: Axes,
    study: FaithfulnessStudy,
    curves: pd.DataFrame,
    replacement: str,
    names: list[str],
) -> list[Any]:
    handles = []
    for number, name in enumerate(names):
        own = curves[(curves["replacement"] == replacement) & (curves["map"] == name)]
        color = _style(study, name)["color"]
        dashes = _DASHES[number % len(_DASHES)]
        handles += axes.plot(
            own["share"], own["insertion"], color=color, linestyle=dashes, linewidth=1.3
        )
        axes.plot(own["share"], own["deletion"], color=color, linestyle=dashes, linewidth=0.7)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.tick_params(labelsize=7.5)
    axes.set_title(f"mean probability, {replacement}", loc="left", fontsize=8)
    axes.set_xlabel("shown (thick), or gone (thin)", loc="left", fontsize=7.5)
    return handles


def _style(study: FaithfulnessStudy, name: str) -> dict[str, Any]:
    signals = list(study.about)
    if name not in signals:
        return {"color": GREY, "marker": "o", "markerfacecolor": "none", "linestyle": "none"}
    place = signals.index(name)
    return {
        "color": SERIES[place % len(SERIES)],
        "marker": _MARKS[place // len(SERIES) % len(_MARKS)],
        "linestyle": "none",
    }


def _name(study: FaithfulnessStudy, name: str, width: float) -> str:
    return fit(drawable(study.label(name))[:200], width, FontProperties(size=7.5))
