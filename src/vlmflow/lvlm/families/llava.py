"""LLaVA (1.5 style) and VipLLaVA: one square or rectangular grid of patches per picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmflow.lvlm.families.base import Family, PromptPictures, places_in
from vlmflow.lvlm.families.pixtral import Pixtral
from vlmflow.lvlm.geometry import MapUnavailableError, preimage
from vlmflow.lvlm.grids import FloatArray, ImageGrid


class Llava(Family):
    """One vision tower pass per picture; its patches follow each other row by row.

    The grid is that of the pixels the tower was really given, and the tokens are counted in the
    prompt, so any tower and picture size works. Tokens in front of the patches (the class token
    with ``vision_feature_select_strategy="full"``, registers) show no place. Pixtral is a LLaVA
    with a tower of its own kind, and has its grids from there.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava", "vipllava")

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per picture; see :meth:`Family.grids`."""
        if getattr(prompt.config.vision_config, "model_type", None) == "pixtral":
            return Pixtral().grids(prompt)
        pixels = prompt.inputs["pixel_values"]
        pictures = len(prompt.image_sizes)
        if pixels.ndim != 4 or pixels.shape[0] != pictures:
            raise MapUnavailableError(
                f"no map over pixels: pixel_values has shape {tuple(pixels.shape)}, not one "
                f"(channels, height, width) for each of {pictures} picture(s)"
            )
        patch_height, patch_width = _patch_size(prompt)
        rows, cols = pixels.shape[-2] // patch_height, pixels.shape[-1] // patch_width
        per_picture, rest = divmod(prompt.positions.size, pictures)
        in_front = per_picture - rows * cols
        if rest or in_front < 0:
            raise MapUnavailableError(
                f"no map over pixels: {prompt.positions.size} image tokens for {pictures} "
                f"picture(s) do not cover {rows} x {cols} patches each"
            )
        grids = []
        for image, (width, height) in enumerate(prompt.image_sizes):
            back = preimage(prompt.processor.image_processor, width, height)
            first = image * per_picture + in_front
            positions = prompt.positions[first : first + rows * cols].reshape(rows, cols)
            boxes = back.boxes(rows, cols, patch_height, patch_width)
            grids.append(ImageGrid(image=image, positions=positions, boxes=boxes))
        return tuple(grids)

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """None but for Pixtral's tower; see :meth:`Family.image_settings`."""
        if getattr(config.vision_config, "model_type", None) == "pixtral":
            return Pixtral().image_settings(processor, config, tokens)
        return None

    def places(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> FloatArray | None:
        """Row by row, one picture after the other; see :meth:`Family.places`.

        ``generate`` may encode pictures before it calls the model, which then gets no pixels: the
        tower's own picture size stands in for theirs.
        """
        if getattr(config.vision_config, "model_type", None) == "pixtral":
            return Pixtral().places(first, tokens, inputs, config)
        size = getattr(config.vision_config, "patch_size", None)
        pixels = inputs.get("pixel_values")
        if pixels is None:
            height = width = getattr(config.vision_config, "image_size", None)
        elif pixels.ndim == 4:
            height, width = pixels.shape[-2:]
        else:
            return None
        if not isinstance(size, int) or not isinstance(height, int) or not isinstance(width, int):
            return None
        rows, cols = height // size, width // size
        if tokens % (rows * cols):  # tokens that show no place
            return None
        pictures = (first + tokens) // (rows * cols) if pixels is None else len(pixels)
        return places_in([(rows, cols)] * pictures, first, tokens)


def _patch_size(prompt: PromptPictures) -> tuple[int, int]:
    """Return ``(height, width)`` of a patch: the vision tower's, which cut the picture."""
    size: Any = getattr(prompt.config.vision_config, "patch_size", None)
    if size is None:
        raise MapUnavailableError(
            "no map over pixels: the vision tower's config names no patch_size"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
