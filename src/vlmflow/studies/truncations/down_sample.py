"""The control that throws away detail: a smaller picture or video with fewer image tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.lvlm.videos import Video
from vlmflow.truncation.truncation import Truncation
from vlmflow.trust.curves import places_of

if TYPE_CHECKING:
    from vlmflow.lvlm.chat import Visual
    from vlmflow.lvlm.grids import Grid
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


def grows(vlm: LVLM, whole: Prompt, question: str) -> bool:
    """Whether a much smaller picture or video has fewer image tokens.

    Much: large pictures may be scaled down to the same size by the processor.
    """
    small = vlm.prepare([_resized(visual, 1 / 8) for visual in whole.visuals], question)
    return small.layout.image_positions.size < whole.layout.image_positions.size


def down_sampled(
    vlm: LVLM, whole: Prompt, question: str, share: float, *, growing: bool
) -> tuple[Prompt, Truncation | None]:
    """Prepare a prompt whose pictures have fewer image tokens because they are smaller.

    Of a video every frame is smaller; it has as many of them, at the same times.

    A model whose image tokens grow with the picture (``growing``, as :func:`grows` says) is simply
    given a smaller one. A model that always makes a picture into the same grid gets it shrunk into
    the top left corner of an even ground, and only the image tokens of that corner go into the
    decoder: the truncation that is returned takes the ground away. ``share`` is that of the image
    tokens of ``whole``.

    Raises
    ------
    InputError
        If it has to be shrunk into a corner, and the boxes of image tokens are not known, or the
        model's inputs do not say which of them are the corner's.
    """
    if growing:
        tokens = share * whole.layout.image_positions.size
        return _nearest(vlm, whole.visuals, question, tokens), None
    grids, what = whole.layout.grids, "a video" if whole.layout.frames else "a picture"
    if not grids or len({grid.shape for grid in grids}) > 1:
        reason = whole.layout.grids_missing or "its pictures have grids of different shapes"
        raise InputError(f"{what} cannot be down-sampled for {vlm.name}: {reason}")
    tokens = int(whole.layout.image_positions.size)
    if vlm.family.places(0, tokens, whole.inputs, vlm.model.config) is None:
        raise InputError(
            f"{what} cannot be down-sampled for {vlm.name}: its inputs do not say where in a "
            "picture or frame image tokens lie; --controls random leaves this control out"
        )
    rows, columns = _corner(grids[0], share)
    places = places_of(whole.visuals, whole.layout.frames)
    first = {places[grid.image][0]: grid for grid in reversed(grids)}
    shrunk = [
        _each(visual, partial(_into_corner, grid=first[number], rows=rows, columns=columns))
        for number, visual in enumerate(whole.visuals)
    ]
    kept = rows * columns * len(grids)
    return vlm.prepare(shrunk, question), Truncation(0, kept, rank_by="top_left")


def _each(visual: Visual, change: Callable[[Image.Image], Image.Image]) -> Visual:
    """Change a picture, or every frame of a video."""
    if not isinstance(visual, Video):
        return change(visual)
    frames = cast("Sequence[Image.Image]", visual.frames)  # a prompt's are read
    return replace(visual, frames=tuple(change(frame) for frame in frames))


def _nearest(vlm: LVLM, whole: Sequence[Visual], question: str, goal: float) -> Prompt:
    """Find the size whose number of tokens comes nearest to the goal, in a few steps."""
    tried: list[tuple[float, float, Prompt]] = []
    low, high = 0.0, 1.0
    for _ in range(8):
        scale = (low + high) / 2
        prompt = vlm.prepare([_resized(visual, scale) for visual in whole], question)
        tokens = prompt.layout.image_positions.size
        # Of pictures with as many tokens, the largest shows most.
        tried.append((abs(tokens - goal), -scale, prompt))
        low, high = (scale, high) if tokens <= goal else (low, scale)
    return min(tried, key=lambda attempt: attempt[:2])[2]


def _resized(visual: Visual, scale: float) -> Visual:
    def resized(picture: Image.Image) -> Image.Image:
        width, height = (max(2, round(side * scale)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    return _each(visual, resized)


def _corner(grid: Grid, share: float) -> tuple[int, int]:
    """Choose rows and columns of a corner in proportion, next to the share wanted."""
    rows, columns = grid.shape
    sides = sorted({(number + 1) / side for side in (rows, columns) for number in range(side)})
    corners = [(int(side * rows + 1e-9), int(side * columns + 1e-9)) for side in sides]
    corners = [(r, c) for r, c in corners if r and c]
    return min(corners, key=lambda corner: abs(corner[0] * corner[1] / (rows * columns) - share))


def _into_corner(picture: Image.Image, grid: Grid, rows: int, columns: int) -> Image.Image:
    """Shrink what a grid shows into its first rows and columns."""

    def inside(x: float, y: float) -> tuple[int, int]:
        """Return whole pixels of the picture."""
        return round(min(max(x, 0), picture.width)), round(min(max(y, 0), picture.height))

    left, top = inside(*grid.boxes[0, 0, :2])
    right, bottom = inside(*grid.boxes[-1, -1, 2:])
    end_x, end_y = inside(*grid.boxes[rows - 1, columns - 1, 2:])
    pixels = np.asarray(picture).reshape(-1, 3)
    red, green, blue = (int(value) for value in pixels.mean(0).round())
    canvas = Image.new("RGB", picture.size, (red, green, blue))
    size = (max(1, end_x - left), max(1, end_y - top))
    small = picture.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC)
    canvas.paste(small, (left, top))
    return canvas
