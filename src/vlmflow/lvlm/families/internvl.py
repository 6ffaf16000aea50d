"""InternVL: a picture stretched to whole tiles, then the whole picture in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmflow.lvlm.families.base import Family, PromptPictures, setting, token_runs
from vlmflow.lvlm.families.tiles import tile_grids
from vlmflow.lvlm.geometry import require_pipeline
from vlmflow.lvlm.grids import ImageGrid


class InternVL(Family):
    """Two grids per picture, ``tiles`` and ``thumbnail``; one where a single tile is enough.

    Pixel shuffle puts squares of patches, ``1 / downsample_ratio`` per side, into one token.
    """

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    pipeline: ClassVar[str] = "got_ocr2"

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return tiles and thumbnail per picture; see :meth:`Family.grids`."""
        processor = prompt.processor
        require_pipeline(processor.image_processor, self.pipeline)
        tall, wide = prompt.inputs["pixel_values"].shape[-2:]
        patch_height, patch_width = self._token_size(prompt.config)
        rows, cols = tall // patch_height, wide // patch_width
        most = setting(processor, "max_patches")
        splits = [(1, 1)] * len(prompt.image_sizes)
        if setting(processor, "crop_to_patches") and most > 1:
            least = setting(processor, "min_patches")
            canvases = [
                self._canvas((height, width), (tall, wide), least, most)
                for width, height in prompt.image_sizes
            ]
            splits = [(down, across) for across, down in canvases]
        counts = [(down * across + (down * across > 1)) * rows * cols for down, across in splits]
        grids: list[ImageGrid] = []
        for image, run in enumerate(token_runs(prompt.positions, counts)):
            grids += tile_grids(image, run, prompt.image_sizes[image], *splits[image], rows, cols)
        return tuple(grids)

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """Bound the number of tiles; see :meth:`Family.image_settings`."""
        size = dict(setting(processor, "size"))
        tall, wide = self._token_size(config)
        per_tile = (size["height"] // tall) * (size["width"] // wide)
        if tokens < per_tile:
            return None
        # Two tiles and more come with a thumbnail.
        tiles = tokens // per_tile - 1 if tokens >= 3 * per_tile else 1
        least, most = setting(processor, "min_patches"), setting(processor, "max_patches")
        return {"min_patches": min(least, tiles), "max_patches": min(most, tiles)}

    def _canvas(self, *choice: Any) -> tuple[int, int]:
        """Return how many tiles lie side by side and on top of each other."""
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            get_optimal_tiled_canvas,
        )

        across, down = get_optimal_tiled_canvas(*choice)
        return across, down

    def _token_size(self, config: Any) -> tuple[int, int]:
        """Return height and width of a token in the tower's pixels."""
        height, width = config.vision_config.patch_size
        return round(height / config.downsample_ratio), round(width / config.downsample_ratio)
