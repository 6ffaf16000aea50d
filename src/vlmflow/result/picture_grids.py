"""Where the image tokens of one picture lie: its grids, and the boxes of its tokens."""

from __future__ import annotations

import numpy as np

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import FloatArray, Grid, ImageGrid
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.result.checks import plural, valid_index


def grids_of(layout: TokenLayout, image: int, kind: str | None = None) -> tuple[Grid, ...]:
    """Return the grids of one picture, or those of one kind; InputError if there are none."""
    if (count := len(layout.image_sizes)) == 0:
        raise InputError(f"image={image!r}, but this result has no pictures")
    index = valid_index("image", image, count, f"this result has {plural(count, 'picture')}")
    grids = tuple(grid for grid in layout.grids if grid.image == index)
    if not grids:
        why = layout.grids_missing or "this picture has no grid of tokens"
        raise InputError(f"image={index} cannot be painted: {why}")
    chosen = tuple(grid for grid in grids if kind in (None, grid.kind))
    if not chosen:
        kinds = ", ".join(repr(grid.kind) for grid in grids)
        raise InputError(f"kind={kind!r}, but image={index} has {kinds}")
    return chosen


def token_boxes(layout: TokenLayout, image: int) -> FloatArray:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.token_boxes`."""
    positions = layout.image_positions
    boxes = np.full((positions.size, 4), np.nan)
    for grid in grids_of(layout, image):
        if isinstance(grid, ImageGrid):  # the tokens of others share the picture
            places = np.searchsorted(positions, grid.positions.ravel())
            boxes[places] = grid.boxes.reshape(-1, 4)
    return boxes
