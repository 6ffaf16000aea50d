"""LLaVA-NeXT: the whole picture small, then the whole picture in tiles, row by row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from vlmflow.lvlm.families.base import Family, PromptPictures, token_runs
from vlmflow.lvlm.geometry import MapUnavailableError, Preimage, require_pipeline
from vlmflow.lvlm.grids import FloatArray, ImageGrid, IntArray


class LlavaNext(Family):
    """Two grids per picture: ``thumbnail``, squeezed into one square, and ``tiles``.

    For the tiles the picture is resized to fit into the best of a few resolutions and padded
    around. Rows and columns of patches that see only padding are dropped, by transformers' own
    ``unpad_image``, and every row that is left ends with an image token that shows no place.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    pipeline: ClassVar[str] = "llava_next"

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return a thumbnail and tiles per picture; see :meth:`Family.grids`."""
        require_pipeline(prompt.processor.image_processor, self.pipeline)
        side = tile_side(prompt)
        boxes = [self._boxes(prompt, size, side) for size in prompt.image_sizes]
        # One more token ends every row.
        counts = [small.size // 4 + tiles.shape[0] * (tiles.shape[1] + 1) for small, tiles in boxes]
        grids = []
        runs = token_runs(prompt.positions, counts)
        for image, (run, (small, tiles)) in enumerate(zip(runs, boxes, strict=True)):
            head, tail = run[: small.size // 4], run[small.size // 4 :]
            grids.append(ImageGrid(image, head.reshape(small.shape[:2]), small, "thumbnail"))
            if tiles.size:
                positions: IntArray = tail.reshape(tiles.shape[0], -1)[:, :-1]
                grids.append(ImageGrid(image, positions, tiles, "tiles"))
        return tuple(grids)

    def _boxes(
        self, prompt: PromptPictures, size: tuple[int, int], side: int
    ) -> tuple[FloatArray, FloatArray]:
        """Return the boxes of the small picture and of the tiles, (rows, cols, 4) each."""
        patch = prompt.config.vision_config.patch_size
        across = side // patch
        small = Preimage.of_resize(size, (side, side)).boxes(across, across, patch, patch)
        (tall, wide), back = _best_fit(prompt, size)
        tiles = back.boxes(tall // side * across, wide // side * across, patch, patch)
        return small, _unpadded(tiles, size)


def tile_side(prompt: PromptPictures) -> int:
    """Return the side of a tile in the tower's pixels."""
    image_processor: Any = prompt.processor.image_processor
    side = int(prompt.config.vision_config.image_size)
    size, crop = image_processor.size, image_processor.crop_size
    sides = {*dict(size).values(), *dict(crop or {}).values()} - {None}
    if sides != {side} or prompt.inputs["pixel_values"].shape[-2:] != (side, side):
        raise MapUnavailableError(
            f"no map over pixels: the image processor makes tiles of size {dict(size)}, cropped to "
            f"{dict(crop or {})}, but the vision tower takes {side} x {side} pixels"
        )
    return side


def _best_fit(prompt: PromptPictures, size: tuple[int, int]) -> tuple[tuple[int, int], Preimage]:
    """Return the resolution that a picture is fitted into, (height, width), and the way back."""
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

    width, height = size
    best = select_best_resolution((height, width), prompt.config.image_grid_pinpoints)
    # It reads the picture's shape only.
    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    new_height, new_width = get_patch_output_size(picture, best, "channels_first")
    left, top = (best[1] - new_width) // 2, (best[0] - new_height) // 2
    return best, Preimage.of_resize(size, (new_width, new_height), left=left, top=top)


def _unpadded(boxes: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Drop the rows and columns that the model drops."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    kept: torch.Tensor = unpad_image(
        torch.from_numpy(np.moveaxis(boxes, -1, 0)), (size[1], size[0])
    )
    return np.moveaxis(kept.numpy(), 0, -1)
