"""Which frames of a video file a model is shown: those that its own processor would take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlmflow.errors import InputError, reason
from vlmflow.lvlm.video_files import Contents, VideoFile, frames_at
from vlmflow.lvlm.videos import Video

PER_SECOND = 2
"""Frames per second where a processor would take every frame; Qwen's and GLM's processors that
choose take as many."""


@dataclass(frozen=True, eq=False)
class ChosenFrames(Video):
    """Frames taken from a file, and what the processor is told of where they stood in it."""

    # The last frame may stand twice: GLM-4.1V's processor takes an even number.
    may_repeat: ClassVar[bool] = True

    # Frames of the file, in units of a mean frame; one for each of ``frames``
    numbers: tuple[int, ...] = field(kw_only=True)
    contents: Contents = field(kw_only=True)

    def metadata(self) -> dict[str, Any]:
        """Return what transformers itself would note while it decodes the file."""
        return {
            "total_num_frames": self.contents.frames,
            "fps": self.contents.rate,
            "frames_indices": list(self.numbers),
            "duration": self.contents.seconds,
        }


def read_video(file: VideoFile, processor: Any) -> ChosenFrames:
    """Choose a file's frames as a model's video processor does, and decode these alone.

    A processor that takes every frame (its ``do_sample_frames`` is off) is given
    :data:`PER_SECOND`; where the file was given a number of frames, so many are taken evenly.

    Raises
    ------
    InputError
        If the processor cannot choose from such a video, or the file cannot be read.
    """
    contents = file.contents
    if file.frames is not None:
        numbers = _evenly(contents.frames, file.frames)
    elif getattr(processor, "do_sample_frames", False):
        numbers = _sampled(file, processor)
    else:
        numbers = _evenly(contents.frames, math.floor(contents.seconds * PER_SECOND))
    return ChosenFrames(
        frames_at(file, numbers),
        [number / contents.rate for number in numbers],
        numbers=numbers,
        contents=contents,
    )


def _evenly(frames: int, wanted: int) -> tuple[int, ...]:
    """Choose as transformers' own ``default_sample_indices_fn`` does."""
    count = min(max(wanted, 1), frames)
    return tuple(number * frames // count for number in range(count))


def _sampled(file: VideoFile, processor: Any) -> tuple[int, ...]:
    """Ask a processor which frames it takes, with the settings that its own call gives it."""
    from transformers.video_utils import VideoMetadata

    contents = file.contents
    width, height = contents.size
    metadata = VideoMetadata(
        total_num_frames=contents.frames,
        fps=contents.rate,
        width=width,
        height=height,
        duration=contents.seconds,
        video_backend="pyav",
    )
    settings = {
        name: getattr(processor, name, None) for name in processor.valid_kwargs.__annotations__
    }
    try:
        chosen = np.asarray(processor.sample_frames(metadata=metadata, **settings)).tolist()
    # What processors raise for a video that is too short for them has no common base.
    except Exception as error:
        raise InputError(
            f"the model's video processor cannot choose frames of {file}, which has "
            f"{contents.frames} ({reason(error)}): give a number of frames (frames=, --frames)"
        ) from error
    numbers = tuple(int(number) for number in chosen)
    if not numbers or list(numbers) != sorted(numbers) or numbers[0] < 0:
        raise InputError(
            f"the model's video processor chooses no usable frames of {file}, which has "
            f"{contents.frames}: give a number of frames (frames=, --frames)"
        )
    return numbers
