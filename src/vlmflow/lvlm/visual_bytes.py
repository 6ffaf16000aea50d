"""What a picture or video is told by in lists and stores: its first frame, and all its content."""

from __future__ import annotations

import hashlib

from PIL import Image

from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.images import open_image
from vlmflow.lvlm.video_files import VideoFile, frames_at, is_video_file
from vlmflow.lvlm.videos import Video


def first_picture(source: VisualSource) -> Image.Image:
    """Open a picture, or a video's first frame.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    if isinstance(source, Video):
        return open_image(source.frames[0])
    if isinstance(source, VideoFile):
        return frames_at(source, [0])[0]
    return frames_at(VideoFile(source), [0])[0] if is_video_file(source) else open_image(source)


def visual_bytes(source: VisualSource) -> bytes:
    """Return what differs between any two pictures or videos that a model is shown differently.

    Of a picture its pixels, of a video its frames' pixels and times; of a file the hash of its
    bytes, and how many frames are to be taken of it.

    Raises
    ------
    InputError, OSError
        If it cannot be read.
    """
    if isinstance(source, Video):
        return f"{source.seconds}".encode() + b"".join(map(visual_bytes, source.frames))
    if isinstance(source, VideoFile):
        digest = hashlib.sha256(f"{source.frames}".encode())
        with source.stream() as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.digest()
    if is_video_file(source):
        return visual_bytes(VideoFile(source))
    image = open_image(source)
    return f"{image.size}".encode() + image.tobytes()
