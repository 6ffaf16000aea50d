"""Insertion and deletion: the score of an answer as its picture appears, and as it vanishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.lvlm.chat import Visual
from vlmflow.lvlm.videos import Frames, Video
from vlmflow.result.map_trust import Curves, FloatArray
from vlmflow.trust.made import Made
from vlmflow.trust.order import ranks_over, replayed, shown_after, token_ranks
from vlmflow.trust.replacement import background, partly_shown

Score = Callable[[Sequence[Visual]], FloatArray]
"""Gives each of some pictures, or of some videos, its score: (n,)."""

STEPS = 64
"""Equally large steps, as EAGLE's protocol has them."""


def measure_curves(
    visual: Visual,
    values: npt.ArrayLike,
    score: Score,
    *,
    frames: Sequence[Frames] = (),
    replacement: str = "black",
    steps: int = STEPS,
    seed: int = 0,
) -> Curves:
    """Insert and delete a picture, or a video, in the order of a map.

    Parameters
    ----------
    visual : PIL.Image or Video
        The original.
    values : (height, width), or (groups, height, width)
        The map, painted over the picture's pixels, or those of every group of the video's frames;
        NaN where no token looks.
    score : callable
        Gives pictures, or videos, their scores. Called once, with ``2 * steps`` of them.
    frames : sequence of Frames
        The groups of a video's frames.
    replacement : str
        One of :data:`~vlmflow.trust.replacement.REPLACEMENTS`.
    steps : int
        How many, of equal area.
    seed : int
        Breaks ties.

    Raises
    ------
    InputError
        For a map that does not fit the picture or cannot be ranked, or an impossible setting.
    """
    check_steps(steps)
    maps = list(np.asarray(values)) if isinstance(visual, Video) else [values]
    shown = picture_steps(
        [visual], maps, frames=frames, replacement=replacement, steps=steps, seed=seed
    )
    scores = score(Made(len(shown), lambda stage: shown[stage][0]))
    return Curves(*both_ways(np.asarray(scores, dtype=np.float64), steps))


def check_steps(steps: object) -> None:
    """Refuse a number of steps that makes no curve."""
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps={steps!r}, but a curve takes at least one")


def picture_steps(
    visuals: Sequence[Visual],
    maps: Sequence[npt.ArrayLike],
    *,
    frames: Sequence[Frames | None] = (),
    replacement: str,
    steps: int,
    seed: int = 0,
    regions: int = 0,
) -> Sequence[list[Visual]]:
    """Let pictures and videos appear and vanish together, in the order of their maps.

    Of a video every group of frames has a map: a pixel comes in all frames of its group at once,
    and counts once for each of them.

    Parameters
    ----------
    visuals : sequence of PIL.Image or Video
        The originals.
    maps : sequence of n (height, width)
        Painted over the pixels of pictures and groups of frames, on one scale; NaN where no token
        looks.
    frames : sequence of n (Frames or None)
        What each map is painted over, as a layout says it; empty where all are pictures.
    replacement : str
        One of :data:`~vlmflow.trust.replacement.REPLACEMENTS`, for each frame by itself.
    steps : int
        How many, of equal area.
    seed : int
        Breaks ties.
    regions : int
        Of so many rectangles along each side, whole ones come and go, by their mean; 0: pixels.

    Returns
    -------
    sequence of ``2 * steps`` lists, each like ``visuals``
        For :func:`both_ways`: ``steps + 1`` that appear, from nothing to everything, and the
        ``steps - 1`` between them that vanish. Each is made when it is asked for.

    Raises
    ------
    InputError
        For a map that does not fit its picture or cannot be ranked.
    """
    places = places_of(visuals, frames)
    ranks = ranks_over(
        [replayed(m, regions) if regions else m for m in maps],
        seed,
        [len(numbers) for _, numbers in places] if frames else None,
    )
    originals = [
        cast("list[Image.Image]", list(own.frames)) if isinstance(own, Video) else [own]
        for own in visuals
    ]
    pixels = [[np.asarray(frame.convert("RGB")) for frame in own] for own in originals]
    hidden_by = [[background(frame, replacement) for frame in own] for own in originals]
    for own_ranks, (visual, _) in zip(ranks, places, strict=True):
        width, height = originals[visual][0].size
        if own_ranks.shape != (height, width):
            raise InputError(
                f"the map is painted over {own_ranks.shape[1]} x {own_ranks.shape[0]} pixels, but "
                f"the picture has {width} x {height}"
            )
    total = 1 + max(int(own_ranks.max()) for own_ranks in ranks)

    def shown(stage: int) -> list[Visual]:
        vanishing = stage > steps
        step = stage - steps if vanishing else stage
        drawn = [list(own) for own in originals]
        for own_ranks, (visual, numbers) in zip(ranks, places, strict=True):
            there = shown_after(own_ranks, step, steps, total) != vanishing
            for number in numbers:
                parts = pixels[visual][number], hidden_by[visual][number]
                drawn[visual][number] = partly_shown(*parts, there)
        return [
            replace(own, frames=tuple(pictures)) if isinstance(own, Video) else pictures[0]
            for own, pictures in zip(visuals, drawn, strict=True)
        ]

    return Made(2 * steps, shown)


def places_of(
    visuals: Sequence[Visual], frames: Sequence[Frames | None]
) -> list[tuple[int, range]]:
    """Say of every picture of a layout which visual it is, and which of its frames: (n,).

    ``frames`` are the layout's. A picture has one frame.
    """
    if not frames:
        return [(number, range(1)) for number in range(len(visuals))]
    videos = [number for number, own in enumerate(visuals) if isinstance(own, Video)]
    pictures = (number for number, own in enumerate(visuals) if not isinstance(own, Video))
    return [
        (next(pictures), range(1)) if group is None
        else (videos[group.video], range(group.first, group.last + 1))
        for group in frames
    ]  # fmt: skip


def token_steps(values: npt.ArrayLike, steps: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Let image tokens appear and vanish in the order of a map, (P,): (2 * steps, P) bool.

    In the order of :func:`picture_steps`; True for tokens that are there.
    """
    ranks = token_ranks(values, seed)
    appearing = [shown_after(ranks, step, steps) for step in range(steps + 1)]
    return np.stack([*appearing, *(~shown for shown in appearing[1:-1])])


def both_ways(scores: FloatArray, steps: int) -> tuple[FloatArray, FloatArray]:
    """Split the scores of ``2 * steps`` stages into insertion and deletion: (steps + 1, ...) each.

    The ends of both curves are the same two stages: nothing and everything.
    """
    insertion, between = scores[: steps + 1], scores[steps + 1 :]
    return insertion, np.concatenate([insertion[-1:], between, insertion[:1]])
