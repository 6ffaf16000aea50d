"""Qwen2-VL and its successors: a picture keeps its shape, and the tower merges patches 2 x 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vlmflow.lvlm.families.base import (
    Family,
    PromptPictures,
    places_in,
    setting,
    token_runs,
)
from vlmflow.lvlm.geometry import Preimage, require_pipeline
from vlmflow.lvlm.grids import FloatArray, ImageGrid, IntArray


class QwenVL(Family):
    """One grid per picture, of as many patches as the resized picture has.

    The processor itself says how many (``image_grid_thw``), so the picture's new size is known and
    not computed a second time. Each token is a square of ``merge_size`` patches per side. A video
    (``video_grid_thw``) is a row of such grids, each of a few frames in a row: a patch is as deep
    as ``temporal_patch_size``.
    """

    model_types: ClassVar[tuple[str, ...]] = (
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen3_5",
        "qwen3_5_moe",
    )
    takes_videos: ClassVar[bool] = True

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per picture; see :meth:`Family.grids`."""
        patches = prompt.inputs["image_grid_thw"].tolist()  # frames, rows, columns
        shapes = [(rows, cols) for _, rows, cols in patches]
        return _grids(prompt, shapes, prompt.processor.image_processor)

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """Bound the pixels of a picture; see :meth:`Family.image_settings`."""
        del config
        own = dict(setting(processor, "size"))
        pixels = tokens * self._token_pixels(processor.image_processor)
        pixels = min(pixels, own["longest_edge"])
        least = min(pixels, own["shortest_edge"])
        return {"size": {"shortest_edge": least, "longest_edge": pixels}}

    def _token_pixels(self, image_processor: Any) -> int:
        """Count the pixels of one image token, as the processor's bounds count them."""
        return int(image_processor.patch_size * image_processor.merge_size) ** 2

    def frames_together(self, processor: Any) -> int:
        """Return how deep a patch is; see :meth:`Family.frames_together`."""
        return int(processor.video_processor.temporal_patch_size)

    def video_grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per group of frames; see :meth:`Family.video_grids`."""
        shapes = list(_each_group(prompt.inputs["video_grid_thw"].tolist()))
        return _grids(prompt, shapes, prompt.processor.video_processor)

    def places(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> FloatArray | None:
        """Row by row, one picture or group of frames after the other; see :meth:`Family.places`.

        ``generate`` may encode pictures before it calls the model, which then is not told their
        shapes: positions on several axes still are places.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            return None
        is_video = ids == config.video_token_id
        is_image = (ids == config.image_token_id) | is_video
        merge = int(config.vision_config.spatial_merge_size)
        pictures, videos = inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        if pictures is not None or videos is not None:
            frames = _each_group([] if videos is None else videos.tolist())
            alone = iter([] if pictures is None else [(r, c) for _, r, c in pictures.tolist()])
            # Some mark videos with the id of pictures, where there are only videos.
            waiting = (frames if pictures is None else alone, frames)
            of_video = is_video[is_image].tolist()
            return places_in(_in_order(of_video, waiting, merge), first, tokens)
        positions = inputs.get("position_ids")
        if positions is None or positions.ndim != 3 or len(positions) < 3:
            return None
        at = is_image.nonzero().cpu().numpy()[first : first + tokens, 1]
        axes = positions[-3:].expand(3, *ids.shape)[:, is_image].cpu().numpy()
        return _places_of(axes[:, first : first + tokens], at)


def _grids(
    prompt: PromptPictures, patches: Sequence[tuple[int, int]], processor: Any
) -> tuple[ImageGrid, ...]:
    """Lay grids of so many (rows, columns) of patches over pictures."""
    require_pipeline(processor, "qwen2_vl", "qwen3_vl", "glm4v")
    merge = int(processor.merge_size)
    side = merge * int(processor.patch_size)
    shapes = [(rows // merge, cols // merge) for rows, cols in patches]
    runs = token_runs(prompt.positions, [rows * cols for rows, cols in shapes])
    grids = []
    for image, (size, run, (rows, cols)) in enumerate(
        zip(prompt.image_sizes, runs, shapes, strict=True)
    ):
        boxes = Preimage.of_resize(size, (cols * side, rows * side)).boxes(rows, cols, side, side)
        grids.append(ImageGrid(image, run.reshape(rows, cols), boxes))
    return tuple(grids)


def _each_group(videos: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Give rows and columns of patches of every group of frames, one video after the other."""
    for groups, rows, cols in videos:
        yield from [(rows, cols)] * groups


def _in_order(
    of_video: Sequence[bool], waiting: Sequence[Iterator[tuple[int, int]]], merge: int
) -> Iterator[tuple[int, int]]:
    """Give rows and columns of tokens of pictures and groups of frames as their tokens stand."""
    begin = 0
    while begin < len(of_video):
        rows, cols = next(waiting[of_video[begin]], (0, 0))
        if not rows * cols:
            return  # fewer than the tokens need: their places are not known
        yield rows // merge, cols // merge
        begin += (rows // merge) * (cols // merge)


def _places_of(axes: IntArray, at: IntArray) -> FloatArray:
    """Read places off positions on the axes of time, rows and columns, (3, tokens).

    Rows and columns count on from the text before a picture or video. Groups of frames follow each
    other without text between them, and may have the same time: what begins one is that rows and
    columns begin anew.
    """
    time, row, column = axes
    backwards = (np.diff(row) < 0) | ((np.diff(row) == 0) & (np.diff(column) <= 0))
    begins = np.append(True, backwards | (np.diff(time) != 0) | (np.diff(at) != 1))
    number = begins.cumsum() - 1
    places = np.stack([number, row - row[begins][number], column - column[begins][number]], axis=1)
    return places.astype(np.float64)
