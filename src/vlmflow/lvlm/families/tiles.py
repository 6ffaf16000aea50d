"""Grids of pictures that are stretched to whole tiles, with the whole picture as one more tile."""

from __future__ import annotations

from vlmflow.lvlm.geometry import Preimage
from vlmflow.lvlm.grids import ImageGrid, IntArray

TILES, THUMBNAIL = "tiles", "thumbnail"
"""Kinds of grids of one picture that is seen twice: in parts, and small as a whole."""


def tile_grids(
    image: int,
    run: IntArray,
    size: tuple[int, int],
    rows: int,
    cols: int,
    tall: int,
    wide: int,
    *,
    thumbnail_first: bool = False,
) -> list[ImageGrid]:
    """Make the grids of one picture: of its tiles and its thumbnail, or one of kind ``"full"``.

    ``run`` holds its image tokens: tile by tile, each row by row, then (or before them) the whole
    picture. The original has ``size`` (width, height) in pixels and is cut into ``rows`` x ``cols``
    tiles of ``tall`` x ``wide`` tokens. Where the tokens are those of one tile, it is seen once.
    """
    whole = Preimage.of_resize(size, (wide, tall)).boxes(tall, wide, 1, 1)
    per_tile = tall * wide
    if run.size == per_tile:
        return [ImageGrid(image, run.reshape(tall, wide), whole)]
    small, many = (
        (run[:per_tile], run[per_tile:]) if thumbnail_first else (run[-per_tile:], run[:-per_tile])
    )
    by_tile = many.reshape(rows, cols, tall, wide)
    positions = by_tile.transpose(0, 2, 1, 3).reshape(rows * tall, cols * wide)
    back = Preimage.of_resize(size, (cols * wide, rows * tall))
    boxes = back.boxes(rows * tall, cols * wide, 1, 1)
    return [
        ImageGrid(image, positions, boxes, TILES),
        ImageGrid(image, small.reshape(tall, wide), whole, THUMBNAIL),
    ]
