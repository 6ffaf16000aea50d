"""DeepSeek-VL: the longer side is resized to the tower's, and what lacks is padded."""

from __future__ import annotations

from typing import Any, ClassVar

from vlmflow.lvlm.families.base import Family, PromptPictures, setting, token_runs
from vlmflow.lvlm.geometry import MapUnavailableError, Preimage, require_pipeline
from vlmflow.lvlm.grids import ImageGrid


class DeepseekVL(Family):
    """One grid per picture, over the picture and the padding around it."""

    model_types: ClassVar[tuple[str, ...]] = ("deepseek_vl",)

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Return one grid per picture; see :meth:`Family.grids`."""
        require_pipeline(prompt.processor.image_processor, "deepseek_vl")
        patch = int(prompt.config.vision_config.patch_size)
        tall, wide = prompt.inputs["pixel_values"].shape[-2:]
        rows, cols = tall // patch, wide // patch
        counts = [rows * cols] * len(prompt.image_sizes)
        grids = []
        for image, run in enumerate(token_runs(prompt.positions, counts)):
            size = prompt.image_sizes[image]
            new = _resized(prompt.processor, size)
            if setting(prompt.processor, "do_pad"):
                square = max(new)
                padded, left, top = (square, square), (square - new[0]) // 2, (square - new[1]) // 2
            else:
                padded, left, top = new, 0, 0
            if padded != (wide, tall):
                raise MapUnavailableError(
                    f"no map over pixels: picture {image} should be {padded[0]} x {padded[1]} "
                    f"pixels for the vision tower, which was given {wide} x {tall}"
                )
            back = Preimage.of_resize(size, new, left=left, top=top)
            boxes = back.boxes(rows, cols, patch, patch)
            grids.append(ImageGrid(image, run.reshape(rows, cols), boxes))
        return tuple(grids)


def _resized(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after the resize, rounded as the image processor does."""
    if not setting(processor, "do_resize"):
        return size
    width, height = size
    scale = dict(setting(processor, "size"))["height"] / max(size)
    least = setting(processor, "min_size")
    return max(round(width * scale), least), max(round(height * scale), least)
