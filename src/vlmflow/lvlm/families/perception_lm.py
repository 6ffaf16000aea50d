"""Perception LM: the whole picture in one tile, then the picture stretched to whole tiles."""

from __future__ import annotations

from typing import Any, ClassVar

from vlmflow.lvlm.families.base import Family, PromptPictures, setting, token_runs
from vlmflow.lvlm.families.tiles import tile_grids
from vlmflow.lvlm.geometry import require_pipeline
from vlmflow.lvlm.grids import ImageGrid


class PerceptionLM(Family):
    """Two grids per picture, ``thumbnail`` and ``tiles``; one without tiling.

    A token is the mean of a square of patches, ``pooling_ratio`` per side.
    """

    model_types: ClassVar[tuple[str, ...]] = ("perception_lm",)

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return thumbnail and tiles per picture; see :meth:`Family.grids`."""
        processor = prompt.processor
        require_pipeline(processor.image_processor, "perception_lm")
        side = prompt.inputs["pixel_values"].shape[-1]
        side = side // int(processor.patch_size) // int(processor.pooling_ratio)
        splits = [_tiles(processor, size) for size in prompt.image_sizes]
        counts = [(1 + across * down) * side**2 for across, down in splits]
        grids: list[ImageGrid] = []
        for image, run in enumerate(token_runs(prompt.positions, counts)):
            across, down = splits[image]
            grids += tile_grids(
                image,
                run,
                prompt.image_sizes[image],
                down,
                across,
                side,
                side,
                thumbnail_first=True,
            )
        return tuple(grids)


def _tiles(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles lie side by side and on top of each other; (0, 0): no tiles."""
    if setting(processor, "vision_input_type") != "thumb+tile":
        return 0, 0
    image_processor, side = processor.image_processor, setting(processor, "tile_size")
    if setting(processor, "max_num_tiles") == 1:
        return 1, 1
    # As the image processor's own resize chooses.
    across, down = image_processor._fit_image_to_canvas(
        *size, side
    ) or image_processor._find_closest_aspect_ratio(*size, side)
    return across, down
