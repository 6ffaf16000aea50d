"""InternVL: a picture stretched to whole tiles, then the whole picture in one."""

from __future__ import annotations

from typing import ClassVar

from vlmflow.lvlm.families.base import Family, PreparedPictures, setting, token_runs
from vlmflow.lvlm.families.tiles import tile_grids
from vlmflow.lvlm.geometry import require_pipeline
from vlmflow.lvlm.layout import ImageGrid


class InternVL(Family):
    """Two grids per picture, ``tiles`` and ``thumbnail``; one where a single tile is enough.

    Pixel shuffle puts squares of patches, ``1 / downsample_ratio`` per side, into one token.
    """

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)

    def grids(self, prepared: PreparedPictures) -> tuple[ImageGrid, ...]:
        """Return tiles and thumbnail per picture; see :meth:`Family.grids`."""
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            get_optimal_tiled_canvas,
        )

        processor = prepared.processor
        require_pipeline(processor.image_processor, "got_ocr2")
        tall, wide = prepared.inputs["pixel_values"].shape[-2:]
        patch_height, patch_width = prepared.config.vision_config.patch_size
        ratio = prepared.config.downsample_ratio
        rows, cols = int(tall // patch_height * ratio), int(wide // patch_width * ratio)
        most = setting(processor, "max_patches")
        splits = [(1, 1)] * len(prepared.image_sizes)
        if setting(processor, "crop_to_patches") and most > 1:
            least = setting(processor, "min_patches")
            canvases = [
                get_optimal_tiled_canvas((height, width), (tall, wide), least, most)
                for width, height in prepared.image_sizes
            ]
            splits = [(down, across) for across, down in canvases]
        counts = [(down * across + (down * across > 1)) * rows * cols for down, across in splits]
        grids: list[ImageGrid] = []
        for image, run in enumerate(token_runs(prepared.positions, counts)):
            grids += tile_grids(image, run, prepared.image_sizes[image], *splits[image], rows, cols)
        return tuple(grids)
