"""The curves: which segments the answer's attention goes to, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.reports.figures.style import SEGMENT_LINES, WIDTH, figure_style, header, segment_name
from vlmflow.reports.palette import GREY, GRID

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.result.information_flow import InformationFlow

_HEIGHT = 3.5


def draw_segments(flow: InformationFlow, target: int) -> Figure:
    """See :func:`vlmflow.reports.figures.all_figures.segment_figure`."""
    with figure_style():
        figure = Figure(figsize=(WIDTH, _HEIGHT))
        header(figure, "Attention flow", flow, target)
        axes = figure.add_axes((0.09, 0.14, 0.89, 0.60))
        _draw_curves(axes, flow, target)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=len(SEGMENTS),
            frameon=False,
            handlelength=4,
            borderaxespad=0.2,
        )
        count = len(flow.targets) - 1
        if target == 0 and count > 1:
            of = "answer tokens" if flow.words is None else "tokens"
            note = figure.text(0.98, 0.03, f"bands: from least to most of {count} {of}")
            note.set(ha="right", color=GREY, fontsize=7)
    return figure


def _draw_curves(axes: Axes, flow: InformationFlow, target: int) -> None:
    layers = np.arange(flow.layers)
    absent = (flow.attention_share[:, target] == 0).all(axis=1)
    share = np.where(absent[:, None, None], np.nan, flow.attention_share)
    every = max(1, flow.layers // 12)
    for index, segment in enumerate(SEGMENTS):
        line = SEGMENT_LINES[segment]
        if target == 0 and len(flow.targets) > 2:
            tokens = share[:, 1:, index]
            low, high = tokens.min(axis=1), tokens.max(axis=1)
            axes.fill_between(layers, low, high, color=line["color"], alpha=0.13, linewidth=0)
        axes.plot(
            layers,
            share[:, target, index],
            label=segment_name(segment, flow),
            linewidth=1.6 if segment == "image" else 1.2,
            markersize=3.5,
            # staggered where they are sparse, so that curves on top of each other stay apart
            markevery=(index % every, every),
            **line,
        )
    missing = np.flatnonzero(absent)
    for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
        if run.size:
            _draw_absence(axes, float(run[0]) - 0.5, float(run[-1]) + 0.5)
    axes.set_xlim(-0.5, flow.layers - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel("decoder layer, counted from 0", loc="left")
    axes.set_ylabel("share of attention")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=20, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    )
    axes.grid(axis="y", linewidth=0.4, color=GRID)
    axes.set_axisbelow(True)


def _draw_absence(axes: Axes, first: float, last: float) -> None:
    axes.axvspan(first, last, fill=False, hatch="xxxx", linewidth=0)
    box = {"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": "none"}
    text = axes.text((first + last) / 2, 0.97, "no attention here", rotation=90, bbox=box)
    text.set(ha="center", va="top", fontsize=7)
