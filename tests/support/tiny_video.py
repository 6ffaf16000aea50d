"""Short videos, and the tiny models that take them."""

from __future__ import annotations

import vlmflow
from tests.support import families
from tests.support.families import FAMILIES, SIZES, TinyFamily, picture
from vlmflow.lvlm.families.table import SUPPORTED

WITH_VIDEOS = {row.model_type for row in SUPPORTED if row.videos}
VIDEO_FAMILIES = [
    family for family in FAMILIES if family.model_type in WITH_VIDEOS and not family.variant
]
WITHOUT_EXPERTS = [family for family in VIDEO_FAMILIES if family in families.WITHOUT_EXPERTS]


def named(name: str) -> TinyFamily:
    (family,) = [family for family in FAMILIES if family.name == name]
    return family


def video(frames: int = 3, size=SIZES[0], *, every: float = 0.5, seed: int = 0) -> vlmflow.Video:
    """A video of an odd number of frames: the last stands alone where two share tokens."""
    shown = [picture(seed + number, size) for number in range(frames)]
    return vlmflow.Video(shown, seconds=[every * number for number in range(frames)])
