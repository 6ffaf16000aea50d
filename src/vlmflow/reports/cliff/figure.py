"""The picture of a cliff study: what removal costs, each sample's cliff layer, and the signals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import figure_style, title_and_note
from vlmflow.reports.palette import GREY, SERIES
from vlmflow.studies.cliff_layer.knockout import ONWARDS, SINGLE
from vlmflow.studies.cliff_layer.measurements import SIGNALS
from vlmflow.studies.cliff_layer.prediction import true_cliffs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from vlmflow.removal.cliff import Cliff
    from vlmflow.studies.cliff_layer.study import CliffStudy

_PANEL, _HEAD = 2.15, 0.7  # Inches
_LOSS, _CLIFF = SERIES[:2]
_LINES: dict[str, dict[str, Any]] = {
    "attention share": {"color": SERIES[1], "linestyle": (0, (5, 1.5)), "marker": "s"},
    "saliency flow": {"color": SERIES[0], "linestyle": "-", "marker": "o"},
    "convergence": {"color": SERIES[3], "linestyle": (0, (5, 1.2, 1, 1.2)), "marker": "D"},
}


_CUT: dict[str, dict[str, Any]] = {
    ONWARDS: {"color": SERIES[2], "linestyle": (0, (5, 1.5)), "marker": "s"},
    SINGLE: {"color": SERIES[3], "linestyle": (0, (1, 1.2)), "marker": "D"},
}
_CUT_NAMES = {ONWARDS: "cut off, from it on", SINGLE: "cut off, at it alone"}


def cliff_figure(study: CliffStudy, layout: FigureLayout = FILE) -> Figure:
    """Draw a study: changed answers, mean KL, the samples' cliff layers, and the cheap signals."""
    frame = study.layer_frame()
    rows = 4 // layout.columns
    height = rows * _PANEL + (_HEAD if layout.titled else 0.25)
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        changed, kl, samples, signals = figure.subplots(rows, layout.columns).ravel()
        figure.subplots_adjust(
            0.6 / layout.width, 0.45 / height, 0.98, 1 - (height - rows * _PANEL) / height, 0.24,
            0.42,
        )  # fmt: skip
        _curve(changed, frame, "changed", study.changed, "answers changed")
        changed.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        _curve(kl, frame, "kl", study.kl, "mean KL, nats")
        _samples(samples, study)
        _signals(signals, frame)
        if layout.titled:
            title_and_note(figure, f"{study.task} on {study.model['name']}", note(study))
    return figure


def note(study: CliffStudy) -> str:
    """Say what is drawn how."""
    return (
        f"{len(study.curves)} samples; bands and shaded layers are 95 % intervals; dotted: "
        "tolerance" + "; cut off: the answer's rows see no image token" * bool(study.knockouts)
    )


def _curve(axes: Axes, frame: pd.DataFrame, name: str, cliff: Cliff, label: str) -> None:
    layers = frame["layer"].to_numpy()
    axes.fill_between(
        layers, frame[f"{name} low"], frame[f"{name} high"], color=_LOSS, alpha=0.18, linewidth=0
    )
    axes.plot(
        layers, frame[name], color=_LOSS, marker="o", markersize=3.5, linewidth=1.5,
        label="removed, from it on",
    )  # fmt: skip
    with_knockout = f"{ONWARDS}{name}" in frame
    if with_knockout:
        _cut_off(axes, frame, name)
    axes.axhline(cliff.tolerance, color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.8)
    end = int(layers[-1]) + 1
    low = end if cliff.low is None else cliff.low
    high = end if cliff.high is None else cliff.high
    axes.axvspan(low - 0.25, min(high, end - 0.5) + 0.25, color=_CLIFF, alpha=0.12, linewidth=0)
    if cliff.layer is not None:
        axes.axvline(cliff.layer, color=_CLIFF, linewidth=1.2)
    title = "no cliff layer" if cliff.layer is None else f"cliff layer {cliff.layer}"
    axes.set_title(title, loc="right", fontsize=8, color=_CLIFF)
    axes.set_title(label, loc="left", fontsize=8)
    axes.set_ylim(bottom=0)
    _layers(axes, layers, "layer" if with_knockout else "tokens removed from layer")


def _cut_off(axes: Axes, frame: pd.DataFrame, name: str) -> None:
    """Draw both curves of a knockout beside that of removal."""
    layers = frame["layer"].to_numpy()
    for prefix, line in _CUT.items():
        low, high = frame[f"{prefix}{name} low"], frame[f"{prefix}{name} high"]
        axes.fill_between(layers, low, high, color=line["color"], alpha=0.13, linewidth=0)
        axes.plot(
            layers, frame[f"{prefix}{name}"], label=_CUT_NAMES[prefix], markersize=3.0,
            linewidth=1.2, **line,
        )  # fmt: skip
    axes.legend(
        fontsize=7, handlelength=2.8, borderaxespad=0.2, facecolor="white", edgecolor="none",
        framealpha=0.85, fancybox=False,
    )  # fmt: skip


def _samples(axes: Axes, study: CliffStudy) -> None:
    cliffs = true_cliffs(study.measurements, study.kl.tolerance)
    end = study.layers[-1] + 1
    counts = np.bincount(cliffs, minlength=end + 1) / len(cliffs)
    axes.bar(range(end), counts[:end], color=_CLIFF, width=0.8)
    axes.bar([end], counts[end:], color=GREY, width=0.8, hatch="////")
    axes.set_title("samples, by their own cliff layer", loc="left", fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _layers(axes, np.arange(end + 1), "cliff layer by KL")
    ticks = [int(tick) for tick in axes.get_xticks() if 0 <= tick < end and tick == int(tick)]
    axes.set_xticks([*ticks, end], [*map(str, ticks), "none"])


def _signals(axes: Axes, frame: pd.DataFrame) -> None:
    layers = frame["layer"].to_numpy()
    for signal in SIGNALS:
        peak = max(float(frame[signal].max()), np.finfo(float).tiny)
        low, high = frame[f"{signal} low"] / peak, frame[f"{signal} high"] / peak
        color = _LINES[signal]["color"]
        axes.fill_between(layers, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(
            layers, frame[signal] / peak, label=signal.split()[0], linewidth=1.2, markersize=3.2,
            **_LINES[signal],
        )  # fmt: skip
    axes.set_ylim(0, 1.32)
    axes.set_yticks([0, 0.5, 1])
    axes.set_title("signals of image tokens, their largest = 1", loc="left", fontsize=8)
    axes.legend(
        frameon=False, fontsize=7, handlelength=2.6, ncols=3, loc="upper left", borderaxespad=0,
        columnspacing=1.2,
    )  # fmt: skip
    _layers(axes, layers, "decoder layer")


def _layers(axes: Axes, layers: np.ndarray, label: str) -> None:
    axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
    axes.set_xlabel(f"{label}, counted from 0", loc="left", fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=13, integer=True))
    axes.tick_params(labelsize=7.5)
