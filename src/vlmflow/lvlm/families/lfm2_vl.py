"""LFM2-VL: a small picture in its own shape, a large one in square tiles and once more small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vlmflow.lvlm.families.base import Family, PromptPictures, setting, token_runs
from vlmflow.lvlm.families.tiles import THUMBNAIL, TILES
from vlmflow.lvlm.geometry import Preimage, require_pipeline
from vlmflow.lvlm.grids import ImageGrid, IntArray


class Lfm2Vl(Family):
    """One grid per picture, or ``tiles`` and ``thumbnail``; the thumbnail keeps its shape.

    The processor says how many patches each tile and thumbnail has (``spatial_shapes``). A token is
    a square of ``downsample_factor`` patches per side.
    """

    model_types: ClassVar[tuple[str, ...]] = ("lfm2_vl",)

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return tiles and thumbnail per picture; see :meth:`Family.grids`."""
        require_pipeline(prompt.processor.image_processor, "lfm2_vl")
        merge = int(prompt.config.downsample_factor)
        # Rows and columns of tokens of every tile and thumbnail of every picture.
        shapes: IntArray = prompt.inputs["spatial_shapes"].cpu().numpy() // merge
        runs = token_runs(prompt.positions, shapes.prod(1).tolist())
        grids, first = [], 0
        for image, size in enumerate(prompt.image_sizes):
            across, down = _tiles(prompt.processor, size)
            tiles = across * down if across * down > 1 else 0
            if tiles:
                rows, cols = shapes[first].tolist()
                positions = np.stack(runs[first : first + tiles]).reshape(down, across, rows, cols)
                whole = (down * rows, across * cols)
                boxes = Preimage.of_resize(size, whole[::-1]).boxes(*whole, 1, 1)
                positions = positions.transpose(0, 2, 1, 3).reshape(whole)
                grids.append(ImageGrid(image, positions, boxes, TILES))
                first += tiles
            if not tiles or setting(prompt.processor, "use_thumbnail"):
                rows, cols = shapes[first].tolist()
                boxes = Preimage.of_resize(size, (cols, rows)).boxes(rows, cols, 1, 1)
                kind = THUMBNAIL if tiles else "full"
                grids.append(ImageGrid(image, runs[first].reshape(rows, cols), boxes, kind))
                first += 1
        return tuple(grids)

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """Bound the tiles, or the tokens of a picture in one; see :meth:`Family.image_settings`."""
        del config
        patch = setting(processor, "encoder_patch_size") * setting(processor, "downsample_factor")
        per_tile = (setting(processor, "tile_size") // patch) ** 2
        thumbnail = setting(processor, "max_image_tokens")
        least = setting(processor, "min_tiles")
        tiles = (tokens - thumbnail) // per_tile
        if setting(processor, "do_image_splitting") and tiles >= max(2, least):
            return {"max_tiles": min(setting(processor, "max_tiles"), tiles)}
        return {
            "do_image_splitting": False,
            "min_image_tokens": min(setting(processor, "min_image_tokens"), tokens),
            "max_image_tokens": min(thumbnail, tokens),
        }


def _tiles(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles lie side by side and on top of each other, by the processor's rules."""
    image_processor = processor.image_processor
    least, most = setting(processor, "min_tiles"), setting(processor, "max_tiles")
    width, height = size
    large = image_processor._is_image_too_large(
        height=height,
        width=width,
        **{
            name: setting(processor, name)
            for name in (
                "max_image_tokens",
                "encoder_patch_size",
                "downsample_factor",
                "max_pixels_tolerance",
            )
        },
    )
    if not large or not setting(processor, "do_image_splitting") or least == most == 1:
        return 1, 1
    tile = setting(processor, "tile_size")
    across, down, *_ = image_processor._get_grid_layout(
        height, width, min_tiles=least, max_tiles=most, tile_size=tile
    )
    return across, down
