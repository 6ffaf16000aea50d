"""Short video files, written with PyAV; every frame's grey level is its number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 10
"""Grey levels between two frames: more than any codec here changes one."""


def clip(
    path: Path,
    frames: int = 24,
    *,
    rate: int = 8,
    size: tuple[int, int] = (32, 48),
    codec: str = "mpeg4",
    ticks: Sequence[int] | None = None,
) -> Path:
    """Write a clip; ``ticks`` are times of presentation in thousandths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), number * STEP, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: Sequence[object]) -> list[int]:
    """Read the numbers off decoded frames."""
    return [round(float(np.asarray(frame).mean()) / STEP) for frame in frames]
