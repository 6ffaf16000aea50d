"""Pixtral's tower (Pixtral, Mistral 3): a picture keeps its shape; a token ends every row."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

from vlmflow.lvlm.families.base import Family, PromptPictures, places_in, setting, token_runs
from vlmflow.lvlm.geometry import MapUnavailableError, Preimage, require_pipeline
from vlmflow.lvlm.grids import FloatArray, ImageGrid


class Pixtral(Family):
    """One grid per picture, of as many patches as the resized picture has.

    The processor says how large that is (``image_sizes``). The tokens between rows are text to the
    model: no features stand there.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per picture; see :meth:`Family.grids`."""
        image_processor = prompt.processor.image_processor
        require_pipeline(image_processor, "pixtral")
        if getattr(image_processor, "do_center_crop", False):
            raise MapUnavailableError(
                "no map over pixels: do_center_crop of a Pixtral image processor is not inverted "
                "here"
            )
        side = _side(prompt.config)
        sizes = prompt.inputs["image_sizes"].tolist()
        shapes = [(height // side, width // side) for height, width in sizes]
        runs = token_runs(prompt.positions, [rows * cols for rows, cols in shapes])
        grids = []
        for image, (run, (rows, cols)) in enumerate(zip(runs, shapes, strict=True)):
            height, width = sizes[image]
            back = Preimage.of_resize(prompt.image_sizes[image], (width, height))
            boxes = back.boxes(rows, cols, side, side)
            grids.append(ImageGrid(image, run.reshape(rows, cols), boxes))
        return tuple(grids)

    def places(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> FloatArray | None:
        """Row by row, one picture after the other; see :meth:`Family.places`."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            return None
        return places_in((sizes // _side(config)).tolist(), first, tokens)

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """Bound the longer side, of which a square has most; see :meth:`Family.image_settings`."""
        own = dict(setting(processor, "size"))["longest_edge"]
        return {"size": {"longest_edge": min(own, isqrt(tokens) * _side(config))}}


def _side(config: Any) -> int:
    """Return the side of a token in the tower's pixels."""
    return int(config.vision_config.patch_size) * int(getattr(config, "spatial_merge_size", 1))
