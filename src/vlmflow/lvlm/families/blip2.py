"""BLIP-2 and InstructBLIP: a few query tokens that each look at the whole picture."""

from __future__ import annotations

from typing import ClassVar

from vlmflow.lvlm.families.base import Family, PreparedPictures
from vlmflow.lvlm.geometry import MapUnavailableError
from vlmflow.lvlm.layout import ImageGrid


class Blip2(Family):
    """No token has a place: a Q-Former asks the picture by cross-attention.

    The processor puts the query tokens before the text by itself, for one picture.
    """

    model_types: ClassVar[tuple[str, ...]] = ("blip-2", "instructblip")
    pictures_in_prompt: ClassVar[bool] = False
    bare_lead: ClassVar[str] = " "

    def grids(self, prepared: PreparedPictures) -> tuple[ImageGrid, ...]:
        """Raise: image tokens stand for no places of the picture."""
        raise MapUnavailableError(
            f"no map over pixels: the {prepared.positions.size} image tokens of "
            f"{prepared.config.model_type!r} are queries of a Q-Former, each of which looks at the "
            "whole picture; none stands for a place in it"
        )
