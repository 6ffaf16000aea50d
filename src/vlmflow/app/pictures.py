"""Pictures that come from outside: uploaded files, checked before they are decoded, and samples."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from vlmflow.app.videos import UploadedVideo, is_video, uploaded_video
from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.lvlm.images import open_image, unread_image
from vlmflow.lvlm.video_files import frames_at
from vlmflow.scenes import sample

if TYPE_CHECKING:
    from vlmflow.result.reading import Box

NAME_CHARACTERS = 120
DISPLAY_SIDE = 512
"""Longest side in pixels of what the page shows beside the question."""

SAMPLES = (
    ("scenes-reading", 3),
    ("scenes-reasoning", 3),
    ("scenes-existence", 1),
    ("scenes-caption", 0),
    ("scenes-reasoning", 8),
    ("scenes-reading", 5),
)
"""Task and index of the pictures that the page offers, in its order."""

SAMPLE_NAMES = tuple(f"sample-{number}" for number in range(len(SAMPLES)))

_decoding = threading.Semaphore(2)
"""How many uploads are decoded at once: each may need all the pixels that are allowed."""


@dataclass(frozen=True)
class KeptPicture:
    """A picture, or a video by its first frame, that can be asked about."""

    image: Image.Image
    name: str
    regions: Mapping[str, Box] | None = None  # Of a sample: what is to be seen in it, and where
    video: UploadedVideo | None = None  # What is asked about instead of its first frame

    @property
    def asked(self) -> Image.Image | UploadedVideo:
        """What a model is asked about."""
        return self.image if self.video is None else self.video

    @property
    def size(self) -> int:
        """Bytes of its pixels, and of a video's file."""
        return size_of(self.image) + (0 if self.video is None else size_of(self.video))

    def display_copy(self) -> bytes:
        """Return a PNG of it, small enough for the page."""
        copy = self.image.copy()
        copy.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
        with io.BytesIO() as file:
            copy.save(file, "PNG")
            return file.getvalue()


def size_of(asked: Image.Image | UploadedVideo) -> int:
    """Return the bytes of a picture's pixels, or of a video's file."""
    if isinstance(asked, UploadedVideo):
        return asked.count_bytes()
    return 3 * asked.width * asked.height


def uploaded_picture(
    content: bytes, name: str, most_pixels: int, most_seconds: float
) -> KeptPicture:
    """Read an uploaded picture or video.

    Raises
    ------
    InputError
        If it is neither, or a broken one, or one of too many pixels or too long; these are counted
        by what its header says, before anything is decoded.
    """
    plain = shown(name, NAME_CHARACTERS) or "without a name"
    if is_video(content, name):
        with _decoding:
            video = uploaded_video(content, plain, most_pixels, most_seconds)
            return KeptPicture(frames_at(video, [0])[0], plain, video=video)
    called = f"picture {plain!r}"
    if not content:
        raise InputError(f"{called} is empty (0 bytes); save or download it again")
    with _decoding, unread_image(content, called) as unread:
        width, height = unread.size
        if width * height > most_pixels:
            raise InputError(
                f"{called} is {width} x {height} pixels, more than {most_pixels:,}; make it smaller"
            )
        try:
            return KeptPicture(open_image(unread), plain)
        except InputError as error:
            raise InputError(str(error).replace("the picture passed in", called)) from error


@cache
def sample_picture(name: str) -> tuple[KeptPicture, str]:
    """Return a picture that the page offers, and the question that goes with it."""
    task, index = SAMPLES[SAMPLE_NAMES.index(name)]
    chosen = sample(task, split="test", index=index)
    return KeptPicture(chosen.picture, name, chosen.regions), chosen.question
