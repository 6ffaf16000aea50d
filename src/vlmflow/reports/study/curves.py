"""Score against the layer of a truncation: one curve per number of tokens kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import drawable, figure_style, fit, title_and_note
from vlmflow.reports.palette import GREY, LIGHT, SERIES
from vlmflow.studies.truncations.arms import NO_IMAGE, UNTOUCHED
from vlmflow.truncation.amounts import Amount, Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.studies.truncations.results import StudyResult
    from vlmflow.studies.truncations.summaries import ArmSummary
    from vlmflow.truncation.truncation import Truncation

Curves = dict[str, list["ArmSummary"]]
"""Summaries of every curve, by their layer; named by what they keep."""

_ROW, _LEGEND, _FOOT = 2.35, 0.18, 0.42  # Inches; a legend's by the line
# Marks say the same without colour.
_LOOKS = [
    {"color": colour, "marker": marker} for colour, marker in zip(SERIES, "o^DvP<", strict=True)
]


def study_curves(study: StudyResult, layout: FigureLayout = FILE) -> Figure:
    """Draw the test score against the layer, for truncations that differ in their layer only.

    One picture per ranking; there are none where :func:`curves_of` finds none.
    """
    panels = curves_of(study)
    columns = max(1, min(layout.columns, len(panels)))
    rows = math.ceil(len(panels) / columns)
    with figure_style():
        looks = _looks(panels)
        per_line = 3 if layout.is_narrow else 7
        head = 0.3 + _LEGEND * math.ceil(len(looks) / per_line) + 0.42 * layout.titled
        height = head + rows * _ROW
        figure = Figure(figsize=(layout.width, height))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        left = 0.6 / layout.width
        right = 1 - 0.12 / layout.width
        figure.subplots_adjust(left, _FOOT / height, right, 1 - head / height, 0.06, 0.3)
        for axes, (title, curves) in zip(grid, panels.items(), strict=False):
            _panel(axes, study, title, curves, looks)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("truncated at layer, counted from 0", loc="left", fontsize=7.5)
        if layout.titled:
            title_and_note(
                figure, f"Score by the layer of truncation: {study.task.name[:200]}", note(study)
            )
        _legend(figure, 1 - 0.42 * layout.titled / height, looks, per_line)
    return figure


def curves_of(study: StudyResult) -> dict[str, Curves]:
    """Group the test summaries of one-stage truncations by ranking, and those by what they keep.

    Keeping none takes no ranking: that curve stands beside those of every ranking. Curves of a
    single layer are left out.
    """
    rankings: dict[str, Curves] = {}
    none: dict[str, list[ArmSummary]] = {}
    for summary in study.summaries:
        policy = summary.arm.truncation
        if summary.split != "test" or summary.arm.kind != "truncation" or policy is None:
            continue
        if len(policy.stages) > 1:
            continue
        keep = policy.stages[0].keep
        if policy.ranks:
            curves = rankings.setdefault(_ranking(policy), {})
            curves.setdefault(_kept(keep), []).append(summary)
        else:
            none.setdefault(f"keep 0{_rest(policy)}", []).append(summary)
    none = {name: summaries for name, summaries in none.items() if len(summaries) > 1}
    panels = {}
    for title, curves in rankings.items():
        kept = {name: _amount(summaries[0]).plain for name, summaries in curves.items()}.__getitem__
        several = {name: curves[name] for name in sorted(curves, key=kept) if len(curves[name]) > 1}
        if several:
            panels[title] = none | several
    if none and not panels:
        panels["no image token kept"] = none
    return {
        title: {name: sorted(summaries, key=_layer) for name, summaries in curves.items()}
        for title, curves in panels.items()
    }


def _looks(panels: dict[str, Curves]) -> dict[str, dict[str, Any]]:
    """Give every curve a colour and a mark, the same in all panels; keeping none is black."""
    numbers = count()
    looks: dict[str, dict[str, Any]] = {}
    for curves in panels.values():
        for name, summaries in curves.items():
            policy = summaries[0].arm.truncation
            if name not in looks and policy is not None and policy.ranks:
                looks[name] = _LOOKS[next(numbers) % len(_LOOKS)]
            looks.setdefault(name, {"color": LIGHT["ink"], "marker": "s"})
    return looks


def _panel(
    axes: Axes, study: StudyResult, title: str, curves: Curves, looks: dict[str, dict[str, Any]]
) -> None:
    tests = [summary for summary in study.summaries if summary.split == "test"]
    for summary in tests:
        if summary.arm.kind == UNTOUCHED:
            axes.axhspan(summary.score.low, summary.score.high, color=GREY, alpha=0.15, linewidth=0)
            axes.axhline(summary.score.value, color=GREY, linewidth=1)
        if summary.arm.kind == NO_IMAGE:
            axes.axhline(summary.score.value, color=GREY, linewidth=1, linestyle=(0, (5, 2)))
    for name, summaries in curves.items():
        _curve(axes, name, summaries, looks[name])
        at_random = _at_random(study, summaries, tests)
        if len(at_random) > 1:
            layers = [_layer(own) for own, _ in at_random]
            scores = [control.score.value for _, control in at_random]
            color = looks[name]["color"]
            axes.plot(layers, scores, color=color, linewidth=1.1, linestyle=(0, (1, 1.3)))
    axes.set_title(fit(drawable(title), 3.2, FontProperties(size=8)), loc="left", fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.tick_params(labelsize=7.5)


def _curve(axes: Axes, name: str, summaries: Sequence[ArmSummary], look: dict[str, Any]) -> None:
    layers = [_layer(summary) for summary in summaries]
    lows = [summary.score.low for summary in summaries]
    highs = [summary.score.high for summary in summaries]
    axes.fill_between(layers, lows, highs, color=look["color"], alpha=0.13, linewidth=0)
    scores = [summary.score.value for summary in summaries]
    axes.plot(layers, scores, label=name, linewidth=1.4, markersize=3.8, **look)


def _at_random(
    study: StudyResult, summaries: Sequence[ArmSummary], tests: Sequence[ArmSummary]
) -> list[tuple[ArmSummary, ArmSummary]]:
    """Pair the summaries of a curve with those of their random controls."""
    by_name = {summary.arm.name: summary for summary in tests}
    return [
        (summary, by_name[control.name])
        for summary in summaries
        for control in study.controls(summary.arm)
        if not control.is_down_sampled and control.name in by_name
    ]


def note(study: StudyResult) -> str:
    """Say what is drawn how."""
    return (
        f"{study.task.metric[:60]} on the test samples; bands: 95 % intervals; grey: "
        "untouched; dashed: no image; dotted: as many tokens at random"
    )


def _legend(figure: Figure, top: float, looks: dict[str, dict[str, Any]], per_line: int) -> None:
    handles = [
        Line2D([], [], label=name, linewidth=1.4, markersize=3.8, **look)
        for name, look in looks.items()
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.006, top), ncols=per_line,
        frameon=False, fontsize=7, handlelength=1.8, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip


def _layer(summary: ArmSummary) -> int:
    assert summary.arm.truncation is not None
    return summary.arm.truncation.first_layer


def _amount(summary: ArmSummary) -> Amount:
    assert summary.arm.truncation is not None
    return summary.arm.truncation.stages[0].keep


def _kept(keep: Amount) -> str:
    return f"keep {keep}" if isinstance(keep, Share) else f"keep {keep} tokens"


def _ranking(policy: Truncation) -> str:
    return f"kept by {policy.ranking.title}{_rest(policy)}"


def _rest(policy: Truncation) -> str:
    drop = "" if policy.remainder == "drop" else f", {policy.remainder}"
    if policy.within != "prompt":
        drop += f", within each {policy.within}"
    return drop if policy.positions == "keep" else f"{drop}, {policy.positions}"
