"""Idefics3 and SmolVLM: a picture in square tiles, then the whole picture squeezed into one."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isqrt
from typing import Any, ClassVar

import numpy as np

from vlmflow.lvlm.families.base import (
    Family,
    PromptPictures,
    places_in,
    setting,
    token_runs,
)
from vlmflow.lvlm.families.tiles import tile_grids
from vlmflow.lvlm.geometry import MapUnavailableError, require_pipeline
from vlmflow.lvlm.grids import FloatArray, ImageGrid


class Idefics3(Family):
    """Two grids per picture, ``tiles`` and ``thumbnail``; one where a single tile is enough.

    Every resize on the way is of the whole picture, so only the number of tiles matters, not the
    sizes in between. A token is a square of ``scale_factor`` patches per side.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return tiles and thumbnail per picture; see :meth:`Family.grids`."""
        require_pipeline(prompt.processor.image_processor, "idefics3", "smolvlm")
        patch, merge = prompt.config.vision_config.patch_size, prompt.config.scale_factor
        tall, wide = prompt.inputs["pixel_values"].shape[-2:]
        if tall != wide or tall % (patch * merge):
            raise MapUnavailableError(
                f"no map over pixels: tiles of {tall} x {wide} pixels do not divide into squares "
                f"of {merge} x {merge} patches of {patch} pixels"
            )
        side = tall // patch // merge
        splits = [_splits(prompt.processor, size) for size in prompt.image_sizes]
        counts = [(rows * cols + (rows * cols > 1)) * side**2 for rows, cols in splits]
        runs = token_runs(prompt.positions, counts)
        grids: list[ImageGrid] = []
        for image, (run, (rows, cols)) in enumerate(zip(runs, splits, strict=True)):
            size = prompt.image_sizes[image]
            grids += tile_grids(image, run, size, rows, cols, side, side)
        return tuple(grids)

    def places(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> FloatArray | None:
        """Known of one picture in one tile; see :meth:`Family.places`.

        How the tiles of a larger picture lie is not among the model's inputs. ``generate`` may
        encode pictures before it calls the model: the tower's own picture size stands in for them.
        """
        del first  # the one picture's own tokens say all
        pixels = inputs.get("pixel_values")
        tall = wide = config.vision_config.image_size
        if pixels is not None:
            tall, wide = pixels.shape[-2:]
        if tall != wide:
            return None
        side = tall // config.vision_config.patch_size // config.scale_factor
        if tokens != side**2:
            return None
        return places_in([(side, side)], 0, tokens)

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """Bound the longer side in tiles; see :meth:`Family.image_settings`."""
        tile = dict(setting(processor, "max_image_size"))["longest_edge"]
        per_tile = (tile // (config.vision_config.patch_size * config.scale_factor)) ** 2
        if tokens < per_tile:
            return None
        across = isqrt(max(0, tokens // per_tile - 1))  # a square picture takes most
        if across < 2 or not setting(processor, "do_image_splitting"):
            return {"do_image_splitting": False}
        own = dict(setting(processor, "size"))["longest_edge"]
        return {"size": {"longest_edge": min(own, across * tile)}}


def _splits(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of tiles, as the image processor's own steps make them."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        get_resize_output_image_size,
    )

    if not setting(processor, "do_image_splitting"):
        return 1, 1
    width, height = size
    if setting(processor, "do_resize"):
        longest = dict(setting(processor, "size"))["longest_edge"]
        # It reads the picture's shape only.
        picture = np.broadcast_to(np.uint8(0), (3, height, width))
        height, width = get_resize_output_image_size(picture, longest)
    tile = dict(setting(processor, "max_image_size"))["longest_edge"]
    # The shorter side follows from the longer one after that was rounded up to whole tiles.
    if width >= height:
        cols = ceil(width / tile)
        return ceil(int(cols * tile / (width / height)) / tile), cols
    rows = ceil(height / tile)
    return rows, ceil(int(rows * tile * (width / height)) / tile)
