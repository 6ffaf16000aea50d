"""Command A Vision: Aya Vision's tiles, by another choice of how many."""

from __future__ import annotations

from typing import Any, ClassVar

from vlmflow.lvlm.families.aya_vision import AyaVision


class Cohere2Vision(AyaVision):
    """Tiles, then the whole picture; the canvas is the one that needs the least resizing."""

    model_types: ClassVar[tuple[str, ...]] = ("cohere2_vision",)
    pipeline: ClassVar[str] = "cohere2_vision"

    def _canvas(self, *choice: Any) -> tuple[int, int]:
        from transformers.models.cohere2_vision.image_processing_cohere2_vision import (
            get_optimal_tiled_canvas,
        )

        across, down = get_optimal_tiled_canvas(*choice)
        return int(across), int(down)
