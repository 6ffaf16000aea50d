"""Figures for papers and talks: the maps of all layers, and where an answer draws from.

No figure is registered with pyplot, so there is nothing to close.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlmflow.errors import InputError
from vlmflow.files import write_files
from vlmflow.reports.figures.figure_files import FORMATS, figure_files
from vlmflow.result.checks import plural, valid_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlmflow.result.information_flow import InformationFlow

Scale = Literal["layer", "shared"]

SCALES: tuple[Scale, ...] = ("layer", "shared")
"""Colours from 0 to the largest value of each layer, or of all layers."""


def strip_figure(
    flow: InformationFlow, signal: str, target: int = 0, *, image: int = 0, scale: Scale = "layer"
) -> Figure:
    """Draw the maps of all layers over the picture, as Figure 4 of the paper.

    The picture in grey, each token's box in the colour of its value. Regions that no token sees are
    hatched; so are layers whose map is undefined or empty, with the word for it. Layers are counted
    from 0 (the paper counts from 1).

    Parameters
    ----------
    signal : str
        One of ``flow.signals``.
    target : int
        0 is the whole answer, t the t-th answer token counted from 1.
    image : int
        Which picture; of a video, which group of frames that share image tokens.
    scale : {"layer", "shared"}
        Colours from 0 to each layer's own largest value (printed below it): where does a layer
        look? Or from 0 to the largest of all layers: how much, compared with the others?

    Raises
    ------
    InputError
        If there is no such signal, target, picture or scale.
    """
    from vlmflow.reports.figures.map_strip import draw_strip

    if scale not in SCALES:
        raise InputError(f"scale={scale!r}, but a strip has {' or '.join(map(repr, SCALES))}")
    return draw_strip(flow, signal, target, image, shared=scale == "shared")


def segment_figure(flow: InformationFlow, target: int = 0) -> Figure:
    """Draw how an answer's attention is shared between segments, as Figure 2 of the paper.

    One curve per segment over the decoder layers, counted from 0. Target 0 is the whole answer: the
    mean of its tokens, which the bands span; t is the t-th answer token counted from 1. Layers
    without attention are hatched.

    Raises
    ------
    InputError
        If there is no such target.
    """
    from vlmflow.reports.figures.segment_curves import draw_segments

    count = len(flow.targets)
    target = valid_index("target", target, count, f"this result has {plural(count, 'target')}")
    return draw_segments(flow, target)


def save_figures(
    flow: InformationFlow,
    directory: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    *,
    target: int = 0,
) -> list[Path]:
    """Write every figure of a result: ``segments`` and one strip per signal, picture and scale.

    Names are ``segments.png``, ``maps_saliency.png`` (a scale per layer),
    ``maps_saliency_shared.png``; further pictures add ``_picture1`` and so on. All figures are
    written or none; formats are those of :data:`~vlmflow.reports.figures.figure_files.FORMATS`.

    Raises
    ------
    InputError
        If a format is unknown, there is no such target, or the directory cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(f"formats={list(formats)!r}, but figures are {' or '.join(FORMATS)}")
    figures = {"segments": segment_figure(flow, target)}
    for signal in flow.signals:
        for image in sorted({grid.image for grid in flow.layout.grids}):
            name = f"maps_{signal}" + (f"_picture{image}" if image else "")
            figures[name] = strip_figure(flow, signal, target, image=image)
            if flow.about[signal].summed is None:
                shared = strip_figure(flow, signal, target, image=image, scale="shared")
                figures[f"{name}_shared"] = shared
    contents = figure_files(figures, formats)
    folder = write_files(directory, contents)
    return [folder / name for name in contents]
