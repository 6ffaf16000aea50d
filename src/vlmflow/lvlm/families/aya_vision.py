"""Aya Vision: InternVL's tiles, with text that names each of them."""

from __future__ import annotations

from typing import Any, ClassVar

from vlmflow.lvlm.families.internvl import InternVL


class AyaVision(InternVL):
    """Tiles, then the whole picture; ``downsample_factor`` patches per side make a token."""

    model_types: ClassVar[tuple[str, ...]] = ("aya_vision",)

    def _token_size(self, config: Any) -> tuple[int, int]:
        side = int(config.vision_config.patch_size) * int(config.downsample_factor)
        return side, side
