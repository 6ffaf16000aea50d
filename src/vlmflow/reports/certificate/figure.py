"""The picture of a certificate: risk against what is spared, and what signals tell by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vlmflow.reports.figures.layout import FILE, FigureLayout
from vlmflow.reports.figures.style import figure_style, title_and_note
from vlmflow.reports.palette import GREY, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.studies.certification.certificate import Certificate

_PANEL, _HEAD = 2.8, 0.6  # Inches
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (3, 1)), (0, (8, 2)))
_MARKS = {"policy": "o", "constant": "s", "by kind": "D", "question alone": "^", "oracle": "*"}


def certificate_figure(certificate: Certificate, layout: FigureLayout = FILE) -> Figure:
    """Draw the tested path with policy and rivals on new samples, and the signals' areas."""
    rows = 2 // layout.columns
    height = rows * _PANEL + (_HEAD if layout.titled else 0.25)
    with figure_style():
        figure = Figure(figsize=(layout.width, height))
        risks, areas = np.ravel(figure.subplots(rows, layout.columns))
        figure.subplots_adjust(
            0.62 / layout.width, 0.5 / height, 0.98, 1 - (height - rows * _PANEL + 0.4) / height,
            0.27, 0.62,
        )  # fmt: skip
        _risk_panel(risks, certificate)
        _area_panel(areas, certificate)
        if layout.titled:
            title = f"{certificate.task} on {certificate.model['name']}"
            title_and_note(figure, title, note(certificate))
    return figure


def note(certificate: Certificate) -> str:
    """Say what is drawn how."""
    return (
        f"line: tested policies ({certificate.tested} samples), thick where accepted; marks: "
        f"replayed on {certificate.settings.samples} new samples"
    )


def _risk_panel(axes: Axes, certificate: Certificate) -> None:
    saved = np.array([tried.saved for tried in certificate.path])
    risk = np.array([tried.risk for tried in certificate.path])
    accepted = np.array([tried.accepted for tried in certificate.path], dtype=bool)
    axes.plot(saved, risk, color=SERIES[0], linewidth=1)
    axes.plot(saved[accepted], risk[accepted], color=SERIES[0], linewidth=2.6)
    if certificate.settings.risk is not None:
        axes.axhline(certificate.settings.risk, color=GREY, linewidth=0.8, linestyle=":")
    for rival, colour in zip(certificate.rivals, SERIES, strict=False):
        if rival.saved == 0 and rival.name != "policy":
            continue
        reach = [[rival.saved - rival.low], [rival.high - rival.saved]]
        axes.errorbar(
            [rival.saved], [rival.risk], xerr=reach,
            fmt=_MARKS[rival.name], color=colour, markersize=5.5, elinewidth=0.8, label=rival.name,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    top = max(0.12, 2.4 * (certificate.settings.risk or 0))
    axes.set_ylim(-0.06 * top, top)
    axes.set_xlabel("image tokens' work spared")
    axes.set_ylabel("answers changed")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.legend(frameon=False, loc="upper left", handletextpad=0.3)


def _area_panel(axes: Axes, certificate: Certificate) -> None:
    frame = certificate.skill_frame()
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    for place, (name, rows) in enumerate(frame.groupby("signal", sort=False)):
        axes.plot(
            rows["layer"], rows["area"], color=SERIES[place % len(SERIES)], marker="o",
            markersize=2.5, linestyle=_DASHES[place % len(_DASHES)], label=str(name),
        )  # fmt: skip
    axes.set_ylim(0.2, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer to leave at")
    axes.set_ylabel("tells who may leave (AUC)")
    axes.legend(
        frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=6.5,
        handletextpad=0.4, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
