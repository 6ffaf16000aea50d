"""GLM-4.1V: Qwen2-VL's grids; a video's frames are marked like pictures, between two words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from vlmflow.errors import InputError
from vlmflow.lvlm.families.qwen_vl import QwenVL


class Glm4v(QwenVL):
    """As :class:`QwenVL`; image tokens of videos have the same id as those of pictures."""

    model_types: ClassVar[tuple[str, ...]] = ("glm4v",)

    def check_videos(self, frames: Sequence[int], pictures: int) -> None:
        """Refuse pictures beside videos: the model cannot tell their tokens apart."""
        del frames
        if pictures:
            raise InputError(
                "GLM-4.1V takes pictures or videos in a prompt, not both: transformers cannot tell "
                "their image tokens apart"
            )

    def _token_pixels(self, image_processor: Any) -> int:
        """Count a picture once for each frame that a patch is deep."""
        return super()._token_pixels(image_processor) * int(image_processor.temporal_patch_size)
