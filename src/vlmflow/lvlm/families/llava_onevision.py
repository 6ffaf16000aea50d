"""LLaVA-OneVision: LLaVA-NeXT's tiles, shrunk where there are many; none for several pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any, ClassVar

import numpy as np

from vlmflow.errors import InputError
from vlmflow.lvlm.families.base import PromptPictures, token_runs
from vlmflow.lvlm.families.llava_next import LlavaNext, tile_side
from vlmflow.lvlm.geometry import (
    MapUnavailableError,
    Preimage,
    boxes_between,
    preimage,
    require_pipeline,
)
from vlmflow.lvlm.grids import FloatArray, ImageGrid, IntArray

SHRINK_FROM = 1.1
"""Features are shrunk where their grid is this many times wider than the most that is allowed."""


class LlavaOnevision(LlavaNext):
    """One picture: as :class:`LlavaNext`. Several: each padded to a square and seen once, small.

    A grid of more patches than ``vision_aspect_ratio`` allows is shrunk by bilinear interpolation
    of its features. The box of such a token is the share of the picture that it stands for; it also
    draws on the patches that touch its centre's patch.

    Every frame of a video is squeezed into a square, seen once, and its features are shrunk in the
    same way to half as many per side, rounded up. A video ends with one image token without a
    place.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    pipeline: ClassVar[str] = "llava_onevision"
    takes_videos: ClassVar[bool] = True

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return the grids of one picture or of several; see :meth:`Family.grids`."""
        if len(prompt.image_sizes) == 1:
            return super().grids(prompt)
        require_pipeline(prompt.processor.image_processor, self.pipeline)
        side, patch = tile_side(prompt), prompt.config.vision_config.patch_size
        across = side // patch
        counts = [across**2 + 1] * len(prompt.image_sizes)
        grids = []
        for image, run in enumerate(token_runs(prompt.positions, counts)):
            width, height = prompt.image_sizes[image]
            square = max(width, height)
            scale = square / side
            left, top = (square - width) // 2, (square - height) // 2
            boxes = Preimage(scale, -left, scale, -top).boxes(across, across, patch, patch)
            grids.append(ImageGrid(image, run[:-1].reshape(across, across), boxes))
        return tuple(grids)

    def check_videos(self, frames: Sequence[int], pictures: int) -> None:
        """Refuse videos that cannot be stacked; see :meth:`Family.check_videos`."""
        del pictures
        if len(set(frames)) > 1:
            raise InputError(
                f"the videos have {', '.join(map(str, frames))} frames, but LLaVA-OneVision takes "
                "videos of one length only in a prompt: pass as many frames of each"
            )

    def video_grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per frame; see :meth:`Family.video_grids`."""
        side = int(prompt.config.vision_config.image_size)
        patch = int(prompt.config.vision_config.patch_size)
        videos, frames, _, *size = prompt.inputs["pixel_values_videos"].shape
        if size != [side, side]:
            raise MapUnavailableError(
                f"no map over pixels: the frames are {size[1]} x {size[0]} pixels for the vision "
                f"tower, which takes {side} x {side}"
            )
        across = side // patch
        pooled = ceil(across / 2)
        step = across * patch / pooled
        counts = ([pooled**2] * (frames - 1) + [pooled**2 + 1]) * videos
        grids = []
        for image, run in enumerate(token_runs(prompt.positions, counts)):
            back = preimage(prompt.processor.video_processor, *prompt.image_sizes[image])
            positions = run[: pooled**2].reshape(pooled, pooled)
            grids.append(ImageGrid(image, positions, back.boxes(pooled, pooled, step, step)))
        return tuple(grids)

    def picture_numbers(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> IntArray | None:
        """Frame by frame, the last one with its video's end; see :meth:`Family.picture_numbers`.

        Frames have as many tokens each and a video one more, so that the number of tokens says how
        many there are: ``generate`` encodes them before it calls the model. Of pictures it does
        not.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            return None
        is_video = ids == config.video_token_id
        of_video = is_video[(ids == config.image_token_id) | is_video][first : first + tokens]
        across = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
        pooled = ceil(across / 2) ** 2
        videos = tokens % pooled
        if not videos or not bool(of_video.all()):
            return None
        frames, rest = divmod((tokens - videos) // pooled, videos)
        if rest or not frames:
            return None
        counts = [pooled] * frames
        counts[-1] += 1
        return np.repeat(np.arange(frames * videos), counts * videos)

    def _boxes(
        self, prompt: PromptPictures, size: tuple[int, int], side: int
    ) -> tuple[FloatArray, FloatArray]:
        small, tiles = super()._boxes(prompt, size, side)
        most = int(prompt.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        rows, cols = tiles.shape[:2]
        ratio = sqrt(rows * cols / (most * small.shape[0] ** 2))
        if ratio > SHRINK_FROM:
            tiles = _shrunk(tiles, int(rows // ratio), int(cols // ratio))
        return small, tiles


def _shrunk(boxes: FloatArray, rows: int, cols: int) -> FloatArray:
    """Cut the area of a grid of boxes into fewer boxes of the same size."""
    x = np.linspace(boxes[0, 0, 0], boxes[0, -1, 2], cols + 1)
    y = np.linspace(boxes[0, 0, 1], boxes[-1, 0, 3], rows + 1)
    return boxes_between(x, y)
