"""Every kind of picture is read as a person would see it, or refused in one clear sentence."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.hard.bad_inputs import PICTURES
from vlmflow.errors import InputError
from vlmflow.lvlm import images
from vlmflow.lvlm.images import open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def quadrants(size: int = 16) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right; wider than high."""
    image = Image.new("RGB", (2 * size, size), WHITE)
    image.paste(RED, (0, 0, size, size // 2))
    image.paste(GREEN, (size, 0, 2 * size, size // 2))
    image.paste(BLUE, (0, size // 2, size, size))
    return image


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file put together by hand, so that its header can claim anything."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "ppm", "tga", "ico"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    image = quadrants(32).crop((0, 0, 32, 32)) if suffix == "ico" else quadrants()
    options = {"lossless": True} if suffix == "webp" else {}
    image.save(path, sizes=[(32, 32)]) if suffix == "ico" else image.save(path, **options)
    np.testing.assert_array_equal(pixels(open_image(path)), np.asarray(image))


def test_a_string_path_and_an_opened_picture_read_the_same(tmp_path):
    path = tmp_path / "picture.png"
    quadrants().save(path)
    from_path = pixels(open_image(str(path)))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(pixels(open_image(opened)), from_path)


def test_the_callers_picture_is_not_touched():
    image = quadrants().convert("RGBA")
    image.putalpha(7)
    before = image.copy()
    result = open_image(image)
    result.paste((0, 0, 0), (0, 0, *result.size))
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(before))


def test_an_rgb_picture_comes_back_as_a_copy():
    image = quadrants()
    open_image(image).paste((0, 0, 0), (0, 0, 5, 5))
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path, mode):
    path = tmp_path / "alpha.png"
    image = Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    image.paste((0, 0, 0, 255) if mode == "RGBA" else (0, 255), (0, 0, 2, 4))
    image.putpixel((3, 3), (0, 0, 0, 51) if mode == "RGBA" else (0, 51))
    image.save(path)
    read = pixels(open_image(path))
    assert read[0, 0].tolist() == [0, 0, 0]
    assert read[0, 3].tolist() == [255, 255, 255]
    assert read[3, 3].tolist() == [204, 204, 204]  # 20 % black over white


def test_palette_without_transparency(tmp_path):
    path = tmp_path / "palette.png"
    quadrants().quantize(4).save(path)
    with Image.open(path) as opened:
        assert opened.mode == "P"
    np.testing.assert_array_equal(pixels(open_image(path)), np.asarray(quadrants()))


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_one_transparent_colour(tmp_path, suffix):
    path = tmp_path / f"palette.{suffix}"
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (2, 0, 4, 4))
    image.save(path, transparency=0)
    read = pixels(open_image(path))
    assert read[0, 0].tolist() == [*WHITE]
    assert read[0, 3].tolist() == [*GREEN]


def test_palette_with_half_transparent_colours(tmp_path):
    path = tmp_path / "palette.png"
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, *GREEN])
    image.paste(1, (2, 0, 4, 4))
    image.save(path, transparency=bytes([51, 255]))
    read = pixels(open_image(path))
    assert read[0, 0].tolist() == [204, 204, 204]
    assert read[0, 3].tolist() == [*GREEN]


def test_grey_and_bilevel(tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "grey.png")
    read = pixels(open_image(tmp_path / "grey.png"))
    np.testing.assert_array_equal(read, np.asarray(grey)[..., None].repeat(3, axis=2))
    grey.point(lambda value: 255 * (value > 127)).convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(pixels(open_image(tmp_path / "bilevel.png")))) == {0, 255}


def test_16_bit_grey_png_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    values = np.array([[0, 257, 1000], [32896, 65278, 65535]], dtype=np.uint16)
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(png(3, 2, rows, depth=16))
    assert pixels(open_image(path))[..., 0].tolist() == [[0, 1, 4], [128, 254, 255]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_tiff_and_memory(tmp_path, mode):
    values = np.array([[0, 32896], [65278, 65535]], dtype=np.uint16)
    stored = values.astype(">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (2, 2), stored.tobytes())
    image.save(tmp_path / "deep.tiff")
    expected = [[0, 128], [254, 255]]
    assert pixels(open_image(tmp_path / "deep.tiff"))[..., 0].tolist() == expected
    assert pixels(open_image(image))[..., 0].tolist() == expected


def test_16_bit_colour_png(tmp_path):
    path = tmp_path / "deep.png"
    row = np.array([65535, 0, 32896, 0, 65535, 257], dtype=">u2").tobytes()
    path.write_bytes(png(2, 2, 2 * (b"\x00" + row), depth=16, colour=2))
    assert pixels(open_image(path))[0].tolist() == [[255, 0, 128], [0, 255, 1]]


@pytest.mark.parametrize(("mode", "kind"), [("F", "floating-point"), ("I", "32-bit integer")])
def test_pixels_without_a_defined_white_are_refused(tmp_path, mode, kind):
    path = tmp_path / "odd.tiff"
    Image.new(mode, (4, 4), 1).save(path)
    with pytest.raises(InputError, match=kind):
        open_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk(tmp_path, suffix):
    # Pillow writes CMYK JPEG as Adobe does: all four channels inverted, with an Adobe marker.
    path = tmp_path / f"print.{suffix}"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)
    if suffix == "jpg":
        assert b"Adobe" in path.read_bytes()
    np.testing.assert_allclose(pixels(open_image(path))[8, 8], RED, atol=3)  # JPEG rounds


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_exif_rotation_is_applied_once(tmp_path, orientation, suffix):
    inverse = {6: 8, 8: 6}
    undo = images._UPRIGHT.get(inverse.get(orientation, orientation))
    stored = quadrants(64) if undo is None else quadrants(64).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif)
    read = open_image(path)
    assert read.size == (128, 64)
    assert not read.info
    assert dict(read.getexif()) == {}
    corners = [read.getpixel(at) for at in ((10, 10), (118, 10), (10, 54), (118, 54))]
    np.testing.assert_allclose(corners, [RED, GREEN, BLUE, WHITE], atol=12)  # JPEG, WebP


def test_broken_exif_does_not_keep_a_picture_from_being_read(tmp_path):
    path = tmp_path / "picture.jpg"
    quadrants().save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert open_image(path).size == quadrants().size


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert open_image(path).getpixel((8, 8)) == RED


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole, part = tmp_path / f"whole.{suffix}", tmp_path / f"part.{suffix}"
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    part.write_bytes(data[: int(kept * len(data))])
    assert open_image(whole).size == (64, 64)
    with pytest.raises(InputError, match=r"part\."):
        open_image(part)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "0 bytes"),
        ("text.png", b"not a picture at all", "not a picture"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        ("bomb.png", png(60_000, 60_000, b"\x00"), "pixels"),
        ("large.png", png(10_001, 10_000, b"\x00"), "10001 x 10000 pixels, more than 100,000,000"),
        ("dot.png", png(1, 1, b"\x00\x00"), "1 x 1 pixels"),
        ("line.png", png(9, 1, b"\x00" + bytes(9)), "9 x 1 pixels"),
        ("strip.png", png(500, 2, 2 * (b"\x00" + bytes(500))), "500 x 2 pixels.*crop"),
        ("nothing.png", png(0, 0, b""), "nothing.png"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_the_size_is_checked_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(png(10_001, 10_000, b"\x00"))

    def decode(self):
        raise AssertionError("decoded a picture that is too large")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decode)
    with pytest.raises(InputError, match="more than"):
        open_image(path)


def test_missing_directory_and_other_sources(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="download it first"):
        open_image("https://example.org/cat.png")
    with pytest.raises(InputError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="NUL character"):
        open_image("nul\x00byte.png")
    with pytest.raises(InputError, match="not int"):
        open_image(3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="regular file"):
        open_image(tmp_path / "pipe.png")


def test_an_opened_picture_whose_data_is_broken(tmp_path):
    path = tmp_path / "part.png"
    quadrants(64).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with Image.open(path) as opened, pytest.raises(InputError, match="the picture passed in"):
        open_image(opened)


CHATTER = """
import sys
from PIL import Image
from vlmflow.errors import InputError
from vlmflow.lvlm.images import open_image

def by_pillow():
    try:
        Image.open(sys.argv[2]).load()
    except OSError:
        pass

def by_us():
    try:
        open_image(sys.argv[2])
    except InputError as error:
        assert "cannot be read" in str(error)

for step in sys.argv[1].split(","):
    {"pillow": by_pillow, "us": by_us}[step]()
"""


def test_libtiff_keeps_what_it_thinks_of_a_broken_file_to_itself(tmp_path):
    path = tmp_path / "broken.tiff"
    path.write_bytes(PICTURES["broken.tiff"])

    def said(steps):
        command = [sys.executable, "-W", "error", "-c", CHATTER, steps, str(path)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stderr

    assert said("us") == b""
    assert b"tempfile.tif: " in said("pillow")
    # Others, in the same process, hear of their files as before.
    assert said("us,pillow") == said("pillow")


def test_pillows_warnings_are_kept_off_too(tmp_path):
    """Of a header that claims many pixels, though fewer than are refused."""
    path = tmp_path / "large.png"
    path.write_bytes(png(10_000, 9_500, b""))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        Image.open(path).close()
        assert shown.pop().category is Image.DecompressionBombWarning
        with pytest.raises(InputError, match="cannot be read"):
            open_image(path)
    assert shown == []


def test_an_empty_path_is_not_the_current_directory():
    with pytest.raises(InputError, match="the path is empty"):
        open_image("")


def test_control_characters_in_a_name_are_shown_escaped(tmp_path):
    with pytest.raises(InputError, match=r"\\x1b") as caught:
        open_image(tmp_path / "a\x1b[31mb.png")
    assert "\x1b" not in str(caught.value)
