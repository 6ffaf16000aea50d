"""The Pareto picture of a study: score against operations, and against measured time."""

from __future__ import annotations

import math
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
from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import drawable, figure_style, fit, title_and_note
from vlmflow.reports.palette import GREY, LIGHT, SERIES
from vlmflow.studies.truncations.arms import UNTOUCHED
from vlmflow.studies.truncations.sentences import points, verdict_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.studies.truncations.arms import Arm
    from vlmflow.studies.truncations.results import StudyResult
    from vlmflow.studies.truncations.summaries import ArmSummary

_PANEL, _LEGEND, _FOOT = 2.9, 0.2, 0.45  # Inches; a legend's by the line
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


def study_figure(study: StudyResult, layout: FigureLayout = FILE) -> Figure:
    """Draw every arm's score on the test split against what it costs.

    The second picture, over measured prefill time, is there only if prefills were timed. Points
    that :func:`numbered_arms` counts have their numbers; a file has the names below.
    """
    summaries = _test_summaries(study)
    panels = 1 + _is_timed(summaries)
    columns = min(panels, layout.columns)
    rows = panels // columns
    names = [f"{number} {drawable(arm.name)}" for number, arm in numbered_arms(study)]
    key_lines = math.ceil(len(names) / 2) if layout.titled else 0
    per_line = 2 if layout.is_narrow else 5
    head = 0.22 + _LEGEND * math.ceil(9 / per_line) + 0.4 * layout.titled
    foot = _FOOT + 0.14 * key_lines
    height = head + rows * _PANEL + (rows - 1) * 0.7 + foot
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        left = 0.6 / layout.width
        right = 1 - 0.2 / layout.width  # half of a tick's label sticks out
        figure.subplots_adjust(left, foot / height, right, 1 - head / height, 0.08, 0.3)
        _pareto(grid[0], study, summaries, "cost_share")
        counted = all(summary.flops_share is not None for summary in summaries)
        what = "operations of the whole prefill" if counted else "FastV's formula for the decoder"
        grid[0].set_xlabel(f"{what}, untouched = 100 %", loc="left")
        grid[0].set_title(f"{drawable(study.task.metric)[:60]}", loc="left", fontsize=8)
        if panels > 1:
            _pareto(grid[1], study, summaries, "prefill_share")
            grid[1].set_xlabel("measured prefill time, untouched = 100 %", loc="left")
        if layout.titled:
            title = f"{study.task.name[:200]} on {str(study.about['model']['name'])[:200]}"
            title_and_note(figure, title, note(study))
        _legend(figure, study, 1 - (0.4 * layout.titled + 0.02) / height, per_line)
        for place, name in enumerate(names[: 2 * key_lines]):
            across, down = divmod(place, key_lines)
            x = (0.1 + across * layout.width / 2) / layout.width
            y = (foot - _FOOT - 0.12 * down - 0.04) / height
            text = fit(name, layout.width / 2 - 0.2, FontProperties(size=7))
            figure.text(x, y, text, fontsize=7, va="center")
    return figure


def note(study: StudyResult) -> str:
    """Say of what a study's picture is, and on which machine times were measured."""
    summaries = _test_summaries(study)
    count = max((summary.count for summary in summaries), default=0)
    times = "prefills were not timed"
    if _is_timed(summaries):
        times = f"times measured on {str(study.about['machine'])[:100]}"
    return f"{count} test samples; bars and band are 95 % intervals; {times}"


def numbered_arms(study: StudyResult) -> list[tuple[int, Arm]]:
    """Give numbers to the arms that a reader asks for: the Pareto fronts, and what was chosen."""
    summaries = _test_summaries(study)
    fronts = [pareto_front(summaries, cost) for cost in ("cost_share", "prefill_share")]
    wanted = {summary.arm.name for front in fronts for summary in front}
    if study.recommendation is not None:
        wanted.add(study.recommendation.test.arm.name)
    ordered = [summary for summary in summaries if summary.arm.name in wanted]
    ordered.sort(key=lambda summary: (summary.cost_share, summary.arm.name))
    return list(enumerate((summary.arm for summary in ordered), start=1))


def _test_summaries(study: StudyResult) -> list[ArmSummary]:
    return [summary for summary in study.summaries if summary.split == "test"]


def _is_timed(summaries: Sequence[ArmSummary]) -> bool:
    return any(
        summary.prefill_share is not None and _kind(summary) == "truncation"
        for summary in summaries
    )


def pareto_front(summaries: Sequence[ArmSummary], cost: str) -> list[ArmSummary]:
    """Return the truncations that no other beats in score at the same cost or less.

    Of summaries of one split; those without the ``cost`` (``"cost_share"`` or ``"prefill_share"``)
    are left out.
    """
    truncations = [
        summary
        for summary in summaries
        if _kind(summary) == "truncation" and getattr(summary, cost) is not None
    ]
    truncations.sort(key=lambda summary: (getattr(summary, cost), -summary.score.value))
    front: list[ArmSummary] = []
    for summary in truncations:
        if not front or summary.score.value > front[-1].score.value:
            front.append(summary)
    return front


def _kind(summary: ArmSummary) -> str:
    policy = summary.arm.truncation
    oracle = summary.arm.kind == "truncation" and policy is not None and policy.is_oracle
    return _ORACLE if oracle else summary.arm.kind


def _pareto(axes: Axes, study: StudyResult, summaries: Sequence[ArmSummary], cost: str) -> None:
    costed = [summary for summary in summaries if getattr(summary, cost) is not None]
    _untouched(axes, costed, study.plan.max_loss)
    for kind, (look, aside, name) in _MARKS.items():
        group = [summary for summary in costed if _kind(summary) == kind]
        if group:
            _marks(axes, group, cost, look, aside, name)
    front = pareto_front(summaries, cost)
    xs = [getattr(summary, cost) for summary in front]
    ys = [summary.score.value for summary in front]
    axes.plot(
        xs, ys, color=_FRONT, linewidth=1.3, drawstyle="steps-post", zorder=2.5,
        label="Pareto front of the truncations",
    )  # fmt: skip
    best = study.recommendation
    chosen = [summary for summary in costed if best is not None and summary.arm == best.test.arm]
    if best is not None and chosen:
        axes.plot(
            [getattr(chosen[0], cost)], [chosen[0].score.value], linestyle="none", marker="o",
            markersize=10, markerfacecolor="none", markeredgecolor=LIGHT["ink"],
            markeredgewidth=1.4, zorder=4, label=verdict_words(best),
        )  # fmt: skip
    _limits(axes, costed, cost)
    numbers = {arm.name: number for number, arm in numbered_arms(study)}
    named = [*chosen, *(s for s in costed if s.arm.name in numbers and s not in chosen)]
    labels = [
        Label(
            getattr(summary, cost), summary.score.value, str(numbers[summary.arm.name]), bold=True
        )
        for summary in named
    ]
    places = np.array(
        [(getattr(summary, cost), summary.score.value) for summary in costed], dtype=float
    )
    place_labels(axes, labels, places, _drawn(axes, costed, cost, front))


def _untouched(axes: Axes, summaries: Sequence[ArmSummary], max_loss: float) -> None:
    for summary in summaries:
        if summary.arm.kind == UNTOUCHED:
            low, high = summary.score.low, summary.score.high
            axes.axhspan(low, high, color=GREY, alpha=0.13, linewidth=0, zorder=0)
            axes.axhline(
                summary.score.value, color=GREY, linewidth=1.1, zorder=1, label="untouched"
            )
            axes.axhline(
                summary.score.value - max_loss, color=GREY, linewidth=0.9, zorder=1,
                linestyle=(0, (1, 1.5)), label=f"{points(max_loss)} below untouched",
            )  # fmt: skip


def _marks(
    axes: Axes,
    summaries: Sequence[ArmSummary],
    cost: str,
    look: dict[str, Any],
    aside: float,
    name: str,
) -> None:
    figure = axes.get_figure()
    assert figure is not None
    place = axes.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
    xs = [getattr(summary, cost) for summary in summaries]
    control = name != "truncation"
    axes.vlines(
        xs, [summary.score.low for summary in summaries],
        [summary.score.high for summary in summaries],
        color=look["color"], linewidth=0.8 if control else 1.1, alpha=0.4 if control else 0.75,
        transform=place, zorder=2,
    )  # fmt: skip
    axes.plot(
        xs, [summary.score.value for summary in summaries], linestyle="none", label=name,
        transform=place, markersize=4.2 if control else 5.2, markeredgecolor="white",
        markeredgewidth=0.5, zorder=2.8 if control else 3, **look,
    )  # fmt: skip


def _limits(axes: Axes, summaries: Sequence[ArmSummary], cost: str) -> None:
    xs = [getattr(summary, cost) for summary in summaries] or [0.0, 1.0]
    lows = [summary.score.low for summary in summaries] or [0.0]
    highs = [summary.score.high for summary in summaries] or [1.0]
    across, up = max(max(xs) - min(xs), 0.05), max(max(highs) - min(lows), 0.05)
    axes.set_xlim(min(xs) - 0.06 * across, max(xs) + 0.06 * across)
    axes.set_ylim(min(lows) - 0.05 * up, max(highs) + 0.07 * up)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=7.5)
    axes.xaxis.label.set_fontsize(7.5)


def _drawn(
    axes: Axes, summaries: Sequence[ArmSummary], cost: str, front: Sequence[ArmSummary]
) -> np.ndarray:
    """Return points along bars, the front and the line of the untouched model."""
    points_drawn = [
        (getattr(summary, cost), y)
        for summary in summaries
        for y in np.linspace(summary.score.low, summary.score.high, 12)
    ]
    for summary, after in pairwise(front):
        start, end = getattr(summary, cost), getattr(after, cost)
        points_drawn += [(x, summary.score.value) for x in np.linspace(start, end, 12)]
        points_drawn += [(end, y) for y in np.linspace(summary.score.value, after.score.value, 6)]
    low, high = axes.get_xlim()
    for summary in summaries:
        if summary.arm.kind == UNTOUCHED:
            points_drawn += [(x, summary.score.value) for x in np.linspace(low, high, 60)]
    return np.array(points_drawn, dtype=float)


def _legend(figure: Figure, study: StudyResult, top: float, per_line: int) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    best = study.recommendation
    ring = "" if best is None else verdict_words(best)
    order = ["truncation", "Pareto front of the truncations", ring, "untouched"]
    pairs = sorted(
        zip(names, handles, strict=True),
        key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order),
    )
    legend = figure.legend(
        [handle for _, handle in pairs], [name for name, _ in pairs], loc="upper left",
        bbox_to_anchor=(0.006, top), ncols=per_line, frameon=False, fontsize=7, handlelength=1.8,
        columnspacing=1.4, borderaxespad=0.2, handletextpad=0.5,
    )  # fmt: skip
    for (name, _), handle in zip(pairs, legend.legend_handles, strict=True):
        if name == ring and isinstance(handle, Line2D):
            handle.set_markersize(7)
