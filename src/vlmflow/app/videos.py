"""Videos that come from outside: files that stay in memory, checked before they are decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vlmflow.errors import InputError
from vlmflow.lvlm.video_files import SUFFIXES, VideoFile, begins_like_video


@dataclass(frozen=True)
class UploadedVideo(VideoFile):
    """A video file that nothing but the app's memory holds; ``path`` is what it is called."""

    content: bytes = field(kw_only=True, repr=False)

    def count_bytes(self) -> int:
        """Count the file's bytes."""
        return len(self.content)

    def stream(self) -> BinaryIO:
        """Open the file for reading."""
        return io.BytesIO(self.content)


def is_video(content: bytes, name: str) -> bool:
    """Tell an uploaded video by its name's ending, or else by how it begins."""
    return Path(name).suffix.lower() in SUFFIXES or begins_like_video(content[:12])


def uploaded_video(
    content: bytes, name: str, most_pixels: int, most_seconds: float
) -> UploadedVideo:
    """Keep an uploaded video whose packets have been counted; nothing is decoded for it.

    Raises
    ------
    InputError
        See :attr:`VideoFile.contents`; and for a video that is longer, or whose frames are larger,
        than the app takes.
    """
    video = UploadedVideo(name, content=content)
    contents = video.contents
    width, height = contents.size
    if width * height > most_pixels:
        raise InputError(
            f"{video} is {width} x {height} pixels, more than {most_pixels:,}; make it smaller"
        )
    if contents.seconds > most_seconds:
        raise InputError(
            f"{video} is {contents.seconds:,.0f} s long, but this app takes {most_seconds:,.0f} s "
            "at most: cut it"
        )
    return video
