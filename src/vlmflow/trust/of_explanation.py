"""The map that a result is shown with, tested right after it was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from vlmflow.errors import InputError
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.model import LVLM
from vlmflow.result.checks import valid_target
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.reading import smallest_box
from vlmflow.result.shown_map import shown_map
from vlmflow.trust.passes import LOW_MEMORY
from vlmflow.trust.trust import trust

EXPLAINED_STEPS = 8
"""Steps of a curve. With the map and eight random orders 144 pictures."""


def shown_with(flow: InformationFlow, target: int | str = 0) -> tuple[str, int | None]:
    """Return signal and layer of the map that a result is shown with.

    Parameters
    ----------
    flow : InformationFlow
        The result.
    target : int or str
        As for :meth:`InformationFlow.map`.

    Raises
    ------
    InputError
        If no map ranks anything, or there is no such target.
    """
    place = valid_target(target, flow.targets)
    chosen = shown_map(flow.about, flow.flags, flow.attention_share, place)
    if chosen is None:
        raise InputError(
            "no map of this answer ranks anything, so none can be tested; leave trust out"
        )
    return chosen


def with_trust(
    vlm: LVLM,
    flow: InformationFlow,
    images: Sequence[VisualSource],
    *,
    low_memory: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> InformationFlow:
    """Return a result with its map, for the whole answer, inserted and deleted.

    The map is the one that the result is shown with; of several pictures, the one that holds half
    of the map in the smallest box comes and goes; of a video, all of it.

    Parameters
    ----------
    vlm, flow : LVLM, InformationFlow
        The model, and what it measured.
    images : sequence of pictures and videos
        All that was asked about.
    low_memory : bool
        Show the model :data:`~vlmflow.trust.passes.LOW_MEMORY` pictures at once; otherwise as many
        as memory holds.
    progress : callable, optional
        Called with ``(pictures done, pictures in all)``.

    Raises
    ------
    InputError
        If no map ranks anything, or the prompt is one that cannot be tested.
    """
    chosen = shown_with(flow)
    reading = smallest_box(flow.map(*chosen), flow.layout)
    tested = trust(
        vlm,
        flow,
        (*chosen, 0),
        images=images,
        image=0 if reading is None else reading.image,
        steps=EXPLAINED_STEPS,
        batch=LOW_MEMORY if low_memory else "auto",
        progress=progress,
    )
    return dataclasses.replace(flow, trust=(*flow.trust, tested))
