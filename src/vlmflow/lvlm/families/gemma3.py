"""Gemma 3: the whole picture in one square, and on request crops of a long one beside it."""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import numpy as np

from vlmflow.lvlm.families.base import Family, PromptPictures, setting, token_runs
from vlmflow.lvlm.families.tiles import THUMBNAIL, TILES
from vlmflow.lvlm.geometry import Preimage, require_pipeline
from vlmflow.lvlm.grids import ImageGrid, IntArray


class Gemma3(Family):
    """One grid per picture; with pan and scan a second one over its crops.

    The tower's patches are averaged to ``mm_tokens_per_image`` tokens. Crops follow each other
    along the longer side; the last one may be narrower, and so are its boxes.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return the picture and its crops; see :meth:`Family.grids`."""
        require_pipeline(prompt.processor.image_processor, "gemma3")
        side = int(prompt.config.mm_tokens_per_image**0.5)
        crops = [_crops(prompt.processor, size) for size in prompt.image_sizes]
        counts = [(1 + (x > 1 or y > 1) * x * y) * side**2 for x, y in crops]
        grids = []
        for image, run in enumerate(token_runs(prompt.positions, counts)):
            size, (across, down) = prompt.image_sizes[image], crops[image]
            boxes = Preimage.of_resize(size, (side, side)).boxes(side, side, 1, 1)
            whole, rest = run[: side**2].reshape(side, side), run[side**2 :]
            kind = THUMBNAIL if rest.size else "full"
            grids.append(ImageGrid(image, whole, boxes, kind))
            if rest.size:
                grids.append(_crop_grid(image, rest, size, across, down, side))
        return tuple(grids)


def _crop_grid(
    image: int, run: IntArray, size: tuple[int, int], across: int, down: int, side: int
) -> ImageGrid:
    """Put all crops of a picture into one grid."""
    x, y = _edges(size[0], across, side), _edges(size[1], down, side)
    boxes = np.empty((len(y), len(x), 4))
    boxes[..., 0::2], boxes[..., 1::2] = x[None], y[:, None]
    positions = run.reshape(down, across, side, side).transpose(0, 2, 1, 3)
    return ImageGrid(image, positions.reshape(down * side, across * side), boxes, TILES)


def _edges(length: int, crops: int, side: int) -> Any:
    """Return start and end of every token along one axis, (crops * side, 2)."""
    step = ceil(length / crops)
    edges = []
    for crop in range(crops):
        start, stop = crop * step, min((crop + 1) * step, length)
        marks = np.linspace(start, stop, side + 1)
        edges.append(np.stack([marks[:-1], marks[1:]], axis=1))
    return np.concatenate(edges)


def _crops(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many crops lie side by side and on top of each other; (1, 1): none are made."""
    if not setting(processor, "do_pan_and_scan"):
        return 1, 1
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    width, height = size
    # The rules are those of either back end; of the picture only the shape is read.
    crops = Gemma3ImageProcessorPil.pan_and_scan(
        processor.image_processor,
        np.broadcast_to(np.uint8(0), (3, height, width)),
        setting(processor, "pan_and_scan_min_crop_size"),
        setting(processor, "pan_and_scan_max_num_crops"),
        setting(processor, "pan_and_scan_min_ratio_to_activate"),
    )
    if not crops:
        return 1, 1
    return (len(crops), 1) if width >= height else (1, len(crops))
