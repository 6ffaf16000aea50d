"""The Pareto picture of a study: score against operations, and against measured time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from vlmflow.reports.figures.label_places import Label, place_labels
from vlmflow.reports.figures.style import WIDTH, drawable, figure_style, fit
from vlmflow.reports.palette import GREY, LIGHT, SERIES
from vlmflow.reports.study.sentences import points, verdict_words
from vlmflow.studies.truncations.arms import UNTOUCHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.studies.truncations.results import Line, Outcome

_HEIGHT = 4.1
_FRONT = SERIES[0]
_ORACLE = "oracle"
# Every kind has a mark of its own. Controls stand a little beside their
# truncation, in points, so that bars of equal cost do not hide each other.
_MARKS: dict[str, tuple[dict[str, Any], float, str]] = {
    "random": ({"color": SERIES[1], "marker": "v"}, -2.6, "random choice"),
    "down-sampled": ({"color": SERIES[2], "marker": "s"}, 2.6, "down-sampled picture"),
    "no image": ({"color": LIGHT["ink"], "marker": "X"}, 0.0, "no image"),
    _ORACLE: ({"color": SERIES[3], "marker": "D"}, 0.0, "looks at the answer"),
    "truncation": ({"color": _FRONT, "marker": "o"}, 0.0, "truncation"),
}
_LABELLED = 9


def study_figure(outcome: Outcome) -> Figure:
    """Draw every setting's score on the test split against what it costs.

    Parameters
    ----------
    outcome : Outcome
        What :func:`vlmflow.studies.truncations.results.read_outcome` read.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot; nothing to close. The second picture, over measured prefill
        time, is there only if prefills were timed.
    """
    lines = [line for line in outcome.lines if line.split == "test"]
    timed = any(line.prefill_share is not None and _kind(line) == "truncation" for line in lines)
    with figure_style():
        figure = Figure(figsize=(WIDTH, _HEIGHT))
        grid = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
        figure.subplots_adjust(0.085, 0.115, 0.985, 0.765, 0.06)
        _pareto(grid[0], outcome, lines, "cost_share")
        counted = all(line.flops_share is not None for line in lines)
        what = "operations of the whole prefill" if counted else "FastV's formula for the decoder"
        grid[0].set_xlabel(f"{what}, untouched = 100 %", loc="left")
        grid[0].set_title(f"{drawable(outcome.task.metric)[:60]}", loc="left", fontsize=8)
        if timed:
            _pareto(grid[1], outcome, lines, "prefill_share")
            grid[1].set_xlabel("measured prefill time, untouched = 100 %", loc="left")
        _head(figure, outcome, lines, timed)
    return figure


def pareto_front(lines: Sequence[Line], cost: str) -> list[Line]:
    """Return the truncations that no other beats in score at the same cost or less.

    Parameters
    ----------
    lines : sequence of Line
        Of one split.
    cost : str
        ``"cost_share"`` or ``"prefill_share"``; lines without it are left out.
    """
    known = [
        line
        for line in lines
        if _kind(line) == "truncation" and getattr(line, cost) is not None
    ]  # fmt: skip
    front: list[Line] = []
    for line in sorted(known, key=lambda line: (getattr(line, cost), -line.score.value)):
        if not front or line.score.value > front[-1].score.value:
            front.append(line)
    return front


def _kind(line: Line) -> str:
    policy = line.setting.truncation
    oracle = line.setting.kind == "truncation" and policy is not None and policy.is_oracle
    return _ORACLE if oracle else line.setting.kind


def _pareto(axes: Axes, outcome: Outcome, lines: Sequence[Line], cost: str) -> None:
    known = [line for line in lines if getattr(line, cost) is not None]
    _untouched(axes, known, outcome.plan.max_loss)
    for kind, (look, aside, words) in _MARKS.items():
        group = [line for line in known if _kind(line) == kind]
        if group:
            _marks(axes, group, cost, look, aside, words)
    front = pareto_front(lines, cost)
    xs = [getattr(line, cost) for line in front]
    ys = [line.score.value for line in front]
    axes.plot(
        xs, ys, color=_FRONT, linewidth=1.3, drawstyle="steps-post", zorder=2.5,
        label="Pareto front of the truncations",
    )  # fmt: skip
    best = outcome.recommendation
    chosen = [line for line in known if best is not None and line.setting == best.test.setting]
    if best is not None and chosen:
        axes.plot(
            [getattr(chosen[0], cost)], [chosen[0].score.value], linestyle="none", marker="o",
            markersize=10, markerfacecolor="none", markeredgecolor=LIGHT["ink"],
            markeredgewidth=1.4, zorder=4, label=verdict_words(best),
        )  # fmt: skip
    _limits(axes, known, cost)
    named = [*chosen, *(line for line in front if line not in chosen)][:_LABELLED]
    labels = [
        Label(getattr(line, cost), line.score.value, line.setting.name, line in chosen)
        for line in named
    ]
    places = np.array([(getattr(line, cost), line.score.value) for line in known], dtype=float)
    place_labels(axes, labels, places, _drawn(axes, known, cost, front), width=1.95)


def _untouched(axes: Axes, lines: Sequence[Line], max_loss: float) -> None:
    for line in lines:
        if line.setting.kind == UNTOUCHED:
            low, high = line.score.low, line.score.high
            axes.axhspan(low, high, color=GREY, alpha=0.13, linewidth=0, zorder=0)
            axes.axhline(line.score.value, color=GREY, linewidth=1.1, zorder=1, label="untouched")
            axes.axhline(
                line.score.value - max_loss, color=GREY, linewidth=0.9, zorder=1,
                linestyle=(0, (1, 1.5)), label=f"{points(max_loss)} below untouched",
            )  # fmt: skip


def _marks(
    axes: Axes, lines: Sequence[Line], cost: str, look: dict[str, Any], aside: float, words: str
) -> None:
    figure = axes.get_figure()
    assert figure is not None
    place = axes.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
    xs = [getattr(line, cost) for line in lines]
    control = words != "truncation"
    axes.vlines(
        xs, [line.score.low for line in lines], [line.score.high for line in lines],
        color=look["color"], linewidth=0.8 if control else 1.1, alpha=0.4 if control else 0.75,
        transform=place, zorder=2,
    )  # fmt: skip
    axes.plot(
        xs, [line.score.value for line in lines], linestyle="none", label=words, transform=place,
        markersize=4.2 if control else 5.2, markeredgecolor="white", markeredgewidth=0.5,
        zorder=2.8 if control else 3, **look,
    )  # fmt: skip


def _limits(axes: Axes, lines: Sequence[Line], cost: str) -> None:
    xs = [getattr(line, cost) for line in lines] or [0.0, 1.0]
    lows = [line.score.low for line in lines] or [0.0]
    highs = [line.score.high for line in lines] or [1.0]
    across, up = max(max(xs) - min(xs), 0.05), max(max(highs) - min(lows), 0.05)
    axes.set_xlim(min(xs) - 0.06 * across, max(xs) + 0.06 * across)
    axes.set_ylim(min(lows) - 0.05 * up, max(highs) + 0.07 * up)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=7.5)
    axes.xaxis.label.set_fontsize(7.5)


def _drawn(axes: Axes, lines: Sequence[Line], cost: str, front: Sequence[Line]) -> np.ndarray:
    """Return points along bars, the front and the untouched line."""
    found = [
        (getattr(line, cost), y)
        for line in lines
        for y in np.linspace(line.score.low, line.score.high, 12)
    ]
    for line, after in pairwise(front):
        start, end = getattr(line, cost), getattr(after, cost)
        found += [(x, line.score.value) for x in np.linspace(start, end, 12)]
        found += [(end, y) for y in np.linspace(line.score.value, after.score.value, 6)]
    low, high = axes.get_xlim()
    for line in lines:
        if line.setting.kind == UNTOUCHED:
            found += [(x, line.score.value) for x in np.linspace(low, high, 60)]
    return np.array(found, dtype=float)


def _head(figure: Figure, outcome: Outcome, lines: Sequence[Line], timed: bool) -> None:
    title = drawable(f"{outcome.task.name[:200]} on {str(outcome.about['model']['name'])[:200]}")
    bold = FontProperties(size=9, weight="bold")
    figure.text(0.014, 0.962, fit(title, WIDTH - 0.2, bold), fontproperties=bold, va="center")
    count = max((line.count for line in lines), default=0)
    words = f"{count} test samples; bars and band are 95 % intervals"
    if timed:
        machine = drawable(str(outcome.about["machine"])[:100])
        words += f"; times measured on {machine}"
    else:
        words += "; prefills were not timed"
    plain = FontProperties(size=7)
    figure.text(
        0.014, 0.917, fit(words, WIDTH - 0.2, plain), fontproperties=plain, color=GREY, va="center"
    )
    handles, names = figure.axes[0].get_legend_handles_labels()
    best = outcome.recommendation
    ring = "" if best is None else verdict_words(best)
    order = ["truncation", "Pareto front of the truncations", ring, "untouched"]
    pairs = sorted(
        zip(names, handles, strict=True),
        key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order),
    )
    legend = figure.legend(
        [handle for _, handle in pairs], [name for name, _ in pairs], loc="upper left",
        bbox_to_anchor=(0.006, 0.9), ncols=5, frameon=False, fontsize=7, handlelength=1.8,
        columnspacing=1.4, borderaxespad=0.2, handletextpad=0.5,
    )  # fmt: skip
    for (name, _), handle in zip(pairs, legend.legend_handles, strict=True):
        if name == ring and isinstance(handle, Line2D):
            handle.set_markersize(7)
