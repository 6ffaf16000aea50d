"""Read any picture a user may have as the RGB pixels a person would see."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlmflow.errors import InputError
from vlmflow.files import as_path
from vlmflow.lvlm.quiet_decoders import quiet_decoders

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, in pixels (300 MB as RGB); checked before decoding."""

MAX_ASPECT = 200
"""Longest side over shortest side; beyond it a processor's resize alone fills the memory."""

# Formats that hold pixels. Pillow also opens page descriptions such as EPS, for which it runs an
# outside program: nothing a picture of unknown origin should be able to ask for.
_FORMATS = frozenset({
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA",
    "TIFF", "WEBP",
})  # fmt: skip

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Read a picture as upright 8-bit RGB.

    EXIF rotation is applied, transparency is composited on white, palettes and CMYK are converted,
    16-bit grey is scaled (not clipped) to 8 bits, and of an animation the first frame is taken.

    Parameters
    ----------
    source
        Path of a picture, or a picture already opened with Pillow (which is left as it is).

    Returns
    -------
    PIL.Image.Image
        A new picture in mode `RGB`, without metadata.

    Raises
    ------
    InputError
        If there is no such file, or it is a directory, empty, truncated or not a picture; if it has
        fewer than 2 x 2 or more than `MAX_PIXELS` pixels or is over `MAX_ASPECT` times as long as
        wide; or if its pixels have no defined white (32-bit integers, floats).
    """
    if isinstance(source, Image.Image):
        return _read(source, "the picture passed in")
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"a picture is a path or a PIL.Image.Image, not {type(source).__name__}: "
            "open it with Pillow first (for an array: PIL.Image.fromarray)"
        )
    path = as_path(source)
    name = f"picture {str(path)!r}"
    check_file(path, name)
    image = _identified(path, name)
    with image:
        return _read(image, name)


def unread_image(data: bytes, name: str) -> Image.Image:
    """Return a picture file that lies in memory; its pixels are decoded when they are first used.

    Raises
    ------
    InputError
        If it is not a picture in a format that can be read.
    """
    return _identified(io.BytesIO(data), name)


def _identified(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Read a picture's header, and no more."""
    Image.init()
    try:
        with quiet_decoders():  # of Pillow's size warning, too: MAX_PIXELS decides here
            return Image.open(source, formats=sorted(_FORMATS & Image.OPEN.keys()))
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name} claims more than {MAX_PIXELS:,} pixels; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not a picture in a format that can be read; save it as PNG or JPEG"
        ) from error
    except Exception as error:  # a broken header makes decoders raise nearly any type
        raise _unreadable(name, error) from error


def check_file(path: Path, name: str, kind: str = "picture") -> None:
    """Refuse what is not a file with something in it; messages call it a ``kind``."""
    try:
        if not path.exists():
            hint = "; download it first" if "://" in str(path) or ":/" in str(path)[:7] else ""
            raise InputError(f"{name} does not exist{hint or '; check the path'}")
        if path.is_dir():
            raise InputError(f"{name} is a directory; give the path of one {kind}")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file; save the {kind} to a file first")
        if path.stat().st_size == 0:
            raise InputError(f"{name} is empty (0 bytes); save or download it again")
    except (OSError, ValueError) as error:  # no permission, name too long, a NUL in the name
        if isinstance(error, InputError):
            raise
        raise _unreadable(name, error) from error


def _read(image: Image.Image, name: str) -> Image.Image:
    check_size(image.size, name)
    try:
        with quiet_decoders():
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image, name)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly any type on truncated or broken data
        raise _unreadable(name, error) from error
    check_size(rgb.size, name)  # some formats learn the true size only while decoding
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    # Left in place, the EXIF rotation could be applied a second time by whoever gets the picture.
    rgb.info.clear()
    return rgb


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a picture, by its width and height in pixels, that cannot be looked at."""
    width, height = size
    if min(width, height) < 2:
        raise InputError(
            f"{name} is {width} x {height} pixels: there is nothing to look at; "
            "give one of at least 2 x 2"
        )
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{name} is {width} x {height} pixels, one side over {MAX_ASPECT} times the other; "
            "crop it"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken metadata must not keep a readable picture from being read
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode == "I":
        # Older Pillow opens 16-bit PNG and PGM in this mode; elsewhere its white is anyone's guess.
        if image.format in {"PNG", "PPM"}:
            return _from_16_bit(image)
        raise _no_white(name, "32-bit integer")
    if image.mode == "F":
        raise _no_white(name, "floating-point")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    grey = np.rint(values / 257).clip(0, 255).astype(np.uint8)  # 65535 / 255 = 257
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _no_white(name: str, kind: str) -> InputError:
    return InputError(
        f"{name} has {kind} pixels, whose white is not defined; convert it to 8 or 16 bits first"
    )


def _unreadable(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name} cannot be read ({reason}); save or download it again")
