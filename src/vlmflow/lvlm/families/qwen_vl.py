"""Qwen2-VL and its successors: a picture keeps its shape, and the tower merges patches 2 x 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vlmflow.lvlm.families.base import Family, PreparedPictures, places_in, token_runs
from vlmflow.lvlm.geometry import Preimage, require_pipeline
from vlmflow.lvlm.grids import FloatArray, ImageGrid


class QwenVL(Family):
    """One grid per picture, of as many patches as the resized picture has.

    The processor itself says how many (``image_grid_thw``), so the picture's new size is known and
    not computed a second time. Each token is a square of ``merge_size`` patches per side.
    """

    model_types: ClassVar[tuple[str, ...]] = (
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen3_5",
        "qwen3_5_moe",
        "glm4v",
    )

    def grids(self, prepared: PreparedPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per picture; see :meth:`Family.grids`."""
        image_processor = prepared.processor.image_processor
        require_pipeline(image_processor, "qwen2_vl", "glm4v")
        merge, patch = int(image_processor.merge_size), int(image_processor.patch_size)
        patches = prepared.inputs["image_grid_thw"].tolist()  # frames, rows, columns
        shapes = [(rows // merge, cols // merge) for _, rows, cols in patches]
        runs = token_runs(prepared.positions, [rows * cols for rows, cols in shapes])
        grids = []
        for image, (size, run, (rows, cols)) in enumerate(
            zip(prepared.image_sizes, runs, shapes, strict=True)
        ):
            side = merge * patch
            back = Preimage.of_resize(size, (cols * side, rows * side))
            boxes = back.boxes(rows, cols, side, side)
            grids.append(ImageGrid(image, run.reshape(rows, cols), boxes))
        return tuple(grids)

    def places(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> FloatArray | None:
        """Row by row, one picture after the other; see :meth:`Family.places`.

        ``generate`` may encode pictures before it calls the model, which then is not told their
        shapes: positions on several axes still are places.
        """
        patches = inputs.get("image_grid_thw")
        if patches is not None:
            merge = int(config.vision_config.spatial_merge_size)
            return places_in((patches[:, 1:] // merge).tolist(), first, tokens)
        positions, ids = inputs.get("position_ids"), inputs.get("input_ids")
        if positions is None or ids is None or positions.ndim != 3 or len(positions) < 3:
            return None
        # Time, row and column; all three count on from the text before the picture.
        axes = positions[-3:].expand(3, *ids.shape)[:, ids == config.image_token_id].cpu().numpy()
        start, row, column = axes[:, first : first + tokens].astype(np.float64)
        pictures = np.unique(start, return_inverse=True)[1]
        return np.stack([pictures, row - start, column - start], axis=1)
