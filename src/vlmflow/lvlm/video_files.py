"""Video files: how long they are, and the frames that are taken from them, upright and timed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from PIL import Image

from vlmflow.errors import InputError, reason
from vlmflow.files import as_path
from vlmflow.lvlm.images import MAX_PIXELS, check_file, check_size, open_image
from vlmflow.parameters import check_integer

SUFFIXES = frozenset({
    ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv",
})  # fmt: skip
"""Endings by which a path is one of a video."""

MAX_BYTES = 2 * 2**30
"""Largest file that is opened."""

MAX_SECONDS = 3600.0
"""Longest video, and with :data:`MAX_STORED` what bounds how long reading one takes."""

MAX_STORED = 250_000
"""Most frames that a file may hold."""

MAX_FRAMES = 768
"""Most frames that are taken of one video: what Qwen2-VL to Qwen3.5 take at most."""

MAX_MEMORY = 2**30
"""Most bytes that the frames taken of one video may have as RGB."""

ROUNDED = 0.002
"""Seconds by which a container may state the time of a frame too late; most count milliseconds."""

# Containers that hold frames. FFmpeg also reads playlists and scripts, which name other files and
# addresses to be opened: nothing a video of unknown origin should be able to ask for.
_FORMATS = "asf,avi,flv,matroska,mov,mpeg,mpegts,mpegvideo,h264,hevc,m4v,ogg,webm"

_NO_EXTRA = "{} is a video file, which needs PyAV to be read; run: pip install 'vlmflow[video]'"


@dataclass(frozen=True)
class Contents:
    """What a video file holds, from its packets alone: nothing is decoded for it."""

    frames: int
    rate: float  # Frames per second, on average
    size: tuple[int, int]  # Width and height of a stored frame, before any rotation
    constant: bool  # Whether every frame is where this rate puts it

    @property
    def seconds(self) -> float:
        """How long all frames are shown."""
        return self.frames / self.rate


@dataclass(frozen=True)
class VideoFile:
    """A video file to be asked about.

    A path alone does the same, with the frames that the model's own processor chooses.

    Parameters
    ----------
    path : path
        Of the file, in a common container (MP4, MOV, Matroska, WebM, AVI, MPEG, ...).
    frames : int, optional
        Take so many frames, evenly over the video, instead of those that the processor chooses; all
        of them where the video has fewer.

    Raises
    ------
    InputError
        If ``frames`` is not an integer from 1 to :data:`MAX_FRAMES`.
    """

    path: str | os.PathLike[str]
    frames: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_path(self.path))
        if self.frames is not None:
            check_integer("frames", self.frames, least=1, most=MAX_FRAMES)

    def __str__(self) -> str:
        return f"video {str(self.path)!r}"

    def count_bytes(self) -> int:
        """Count the file's bytes; InputError if it is not a file with something in it."""
        path = Path(self.path)
        check_file(path, str(self), kind="video")
        return path.stat().st_size

    def stream(self) -> BinaryIO:
        """Open the file for reading."""
        return Path(self.path).open("rb")

    @cached_property
    def contents(self) -> Contents:
        """Number, rate and size of the frames.

        Raises
        ------
        InputError
            If PyAV is missing; if there is no such file, or it is not a video, has no frames, is
            cut off or beyond a limit (:data:`MAX_BYTES`, :data:`MAX_SECONDS`, :data:`MAX_STORED`).
        """
        return _contents(self)


def is_video_file(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Tell a path to a video by its ending, or else by how the file begins."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(source)
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except (OSError, ValueError):
        return False
    return begins_like_video(start)


def begins_like_video(start: bytes) -> bool:
    """Tell a video by the first twelve bytes of its file."""
    # AVIF and HEIC pictures are in the container of MP4, under brands of their own.
    is_mp4 = start[4:8] == b"ftyp" and start[8:12] not in (b"avif", b"avis", b"mif1", b"heic")
    is_avi = start[:4] == b"RIFF" and start[8:12] == b"AVI "
    return is_mp4 or is_avi or start.startswith((b"\x1a\x45\xdf\xa3", b"FLV\x01"))


def open_visual(path: str | os.PathLike[str], frames: int | None = None) -> Image.Image | VideoFile:
    """Open a picture; of a video file only find out what it holds.

    Raises
    ------
    InputError
        See :func:`vlmflow.lvlm.images.open_image` and :attr:`VideoFile.contents`.
    """
    if not is_video_file(path):
        return open_image(path)
    file = VideoFile(path, frames)
    assert file.contents  # refuses what cannot be read
    return file


def frames_at(file: VideoFile, numbers: Sequence[int]) -> list[Image.Image]:
    """Decode what a player shows at some moments of a video, as upright RGB.

    Parameters
    ----------
    file : VideoFile
        Which.
    numbers : sequence of int
        The moments in units of a mean frame (``number / rate`` seconds from the first frame on), in
        order, not before 0. Where the rate is constant these are the frames of these numbers.

    Raises
    ------
    InputError
        If there are too many for the memory, or the file cannot be decoded.
    """
    contents = file.contents
    _check_memory(file, len(numbers), contents.size)
    moments = [number / contents.rate for number in numbers]
    # Where frames are counted, a late one is still that frame; elsewhere containers only round.
    late = 0.5 / contents.rate if contents.constant else ROUNDED
    frames: list[Image.Image] = []
    last: Any = None

    def take(frame: Any) -> None:
        if not frames:  # what the container states of sizes need not be so
            _check_memory(file, len(numbers), (frame.width, frame.height))
        image = _upright(frame, file)
        if frames and image.size != frames[0].size:
            raise InputError(f"{file} changes its size on the way; export it in one size")
        frames.append(image)

    for time, frame in _decoded(file):
        while len(frames) < len(moments) and time > moments[len(frames)] + late:
            take(last or frame)
        last = frame
        if len(frames) == len(moments):
            break
    if last is None:
        raise InputError(f"{file} has no frame that can be decoded; export it again")
    for _ in moments[len(frames) :]:
        take(last)
    return frames


def _check_memory(file: VideoFile, count: int, size: tuple[int, int]) -> None:
    width, height = size
    most = min(MAX_FRAMES, MAX_MEMORY // max(1, 3 * width * height))
    if count > most:
        raise InputError(
            f"{file} would give {count} frames of {width} x {height} pixels, but {most} at most "
            "are taken of such a video: give a number of frames (frames=, --frames), or make it "
            "shorter or smaller"
        )


def _contents(file: VideoFile) -> Contents:
    with _opened(file) as (container, stream):
        times = []
        for packet in container.demux(stream):
            # The packet that ends a stream is empty and has no time; some containers store no
            # time of presentation, only one of decoding.
            time = packet.dts if packet.pts is None else packet.pts
            if time is None or packet.is_discard:
                continue
            times.append(time)
            if len(times) > MAX_STORED:
                raise InputError(f"{file} has more than {MAX_STORED:,} frames; cut it")
        declared, stated = stream.frames, stream.average_rate
        size = (stream.codec_context.width, stream.codec_context.height)
        base = Fraction(stream.time_base)
        overall = (container.duration or 0) / 1_000_000
        is_matroska = container.format.name.startswith("matroska")
    if not times:
        raise InputError(f"{file} has no frames; export it again")
    first = min(times)
    length = (max(times) - first) * base
    if length > MAX_SECONDS:
        raise InputError(
            f"{file} is {float(length):,.0f} s long, but at most {MAX_SECONDS:,.0f} s are read: "
            "cut it"
        )
    # MP4 and AVI state how many frames there are; Matroska how long it is, sound included.
    cut_off = len(times) < declared or (is_matroska and float(length) < 0.5 * overall - 1)
    if cut_off:
        raise InputError(
            f"{file} is cut off: {len(times)} of its {declared or 'announced'} frames are there; "
            "copy or download it again"
        )
    check_size(size, str(file))
    rate = _rate(len(times), length, stated)
    places = [float((time - first) * base) * rate for time in sorted(times)]
    constant = all(abs(place - number) < 0.5 for number, place in enumerate(places))
    return Contents(len(times), rate, size, constant)


def _rate(frames: int, length: Fraction, stated: Fraction | None) -> float:
    """Return the rate that a file states, if that puts its last frame in the right place."""
    steps = frames - 1
    if stated is not None and 0 < stated <= 1000 and abs(steps / stated - length) <= 0.5 / stated:
        return float(stated)
    return float(steps / length) if length > 0 else 1.0


def _decoded(file: VideoFile) -> Iterator[tuple[float, Any]]:
    """Give every frame with its time from the first one on."""
    with _opened(file) as (container, stream):
        base, start = Fraction(stream.time_base), None
        for number, frame in enumerate(container.decode(stream)):
            if frame.pts is None:
                yield number / file.contents.rate, frame
                continue
            start = frame.pts if start is None else start
            yield float((frame.pts - start) * base), frame


@contextmanager
def _opened(file: VideoFile) -> Iterator[tuple[Any, Any]]:
    """Open a file's container and its first stream of moving pictures, and put errors in words."""
    av = _av(file)
    size = file.count_bytes()
    if size > MAX_BYTES:
        raise InputError(
            f"{file} has {size:,} bytes, but at most {MAX_BYTES:,} are read: cut it, or make it "
            "smaller"
        )
    try:
        with (
            file.stream() as stored,
            av.open(
                stored, container_options={"format_whitelist": _FORMATS}, io_open=_no_other_file
            ) as container,
        ):
            pictured = av.stream.Disposition.attached_pic  # the cover of a piece of music
            streams = [each for each in container.streams.video if not each.disposition & pictured]
            if not streams:
                raise InputError(
                    f"{file} has no video in it; check the path, or if it is cut off, copy it again"
                )
            if streams[0].codec_context is None:
                raise InputError(f"{file} is coded in a way that is not known; export it as MP4")
            streams[0].codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, streams[0]
    except InputError:
        raise
    except Exception as error:  # broken data makes decoders raise nearly any type
        raise _unreadable(file, error) from error


def _unreadable(file: VideoFile, error: Exception) -> InputError:
    why = getattr(error, "strerror", None) or reason(error)
    return InputError(
        f"{file} cannot be read ({why}): it may be cut off or damaged; copy or export it again"
    )


def _av(file: VideoFile) -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(_NO_EXTRA.format(file)) from error
    return av


def _no_other_file(url: str, _flags: int, _options: dict[str, str]) -> Any:
    raise OSError(f"it refers to another file, {url!r}")


def _upright(frame: Any, file: VideoFile) -> Image.Image:
    check_size((frame.width, frame.height), str(file))
    try:
        image: Image.Image = frame.to_image()
    except Exception as error:  # a layout of pixels that cannot become RGB
        raise _unreadable(file, error) from error
    # What the display matrix turns anticlockwise, as Pillow does.
    turn = round(frame.rotation / 90) % 4
    if turn:
        image = image.transpose(Image.Transpose(Image.Transpose.ROTATE_90 + turn - 1))
    return image
