"""What stands in a picture where it is not shown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from vlmflow.errors import InputError

REPLACEMENTS = ("black", "blur", "mean")
"""Black (EAGLE's, arXiv 2509.22496), a blurred copy, or the picture's mean colour."""

_BLUR = 0.08
"""Standard deviation of the blur, as a share of the picture's longer side."""

Pixels = npt.NDArray[np.uint8]


def background(picture: Image.Image, replacement: str) -> Pixels:
    """Return what shows where the picture does not: (height, width, 3) uint8.

    Raises
    ------
    InputError
        For a replacement that does not exist.
    """
    pixels = np.asarray(picture.convert("RGB"))
    if replacement == "black":
        return np.zeros_like(pixels)
    if replacement == "mean":
        return np.broadcast_to(pixels.mean((0, 1)).round().astype(np.uint8), pixels.shape).copy()
    if replacement == "blur":
        blur = ImageFilter.GaussianBlur(_BLUR * max(picture.size))
        return np.asarray(picture.convert("RGB").filter(blur))
    raise InputError(f"replacement={replacement!r} is none of {', '.join(REPLACEMENTS)}")


def partly_shown(pixels: Pixels, hidden_by: Pixels, shown: npt.NDArray[np.bool_]) -> Image.Image:
    """Return a picture that is ``pixels`` where ``shown``, and ``hidden_by`` elsewhere."""
    return Image.fromarray(np.where(shown[..., None], pixels, hidden_by))
