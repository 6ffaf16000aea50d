"""A video: the frames that somebody passes, and the groups of frames that share image tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, cast

from PIL import Image

from vlmflow.errors import InputError
from vlmflow.lvlm.images import open_image


@dataclass(frozen=True, eq=False)
class Video:
    """Frames that are asked about as one video; none of them is left out or added.

    Parameters
    ----------
    frames : sequence of paths or PIL pictures
        At least one, in order, all of one size.
    seconds : sequence of float, optional
        When each was taken, from the start of the video on, increasing. Models that are told the
        time of frames need it; where it is left out, frames are only numbered.

    Raises
    ------
    InputError
        Without frames, for a file instead of frames, or times that do not fit the frames.
    """

    frames: Sequence[str | os.PathLike[str] | Image.Image]
    seconds: Sequence[float] | None = None

    may_repeat: ClassVar[bool] = False
    """Whether a frame may have the time of the one before."""

    def __post_init__(self) -> None:
        source: Any = self.frames
        if isinstance(source, str | os.PathLike):
            raise InputError(
                f"{str(source)!r} is a file: pass its path in place of the video, or as "
                f"vlmflow.VideoFile({str(source)!r}, frames=8)"
            )
        if isinstance(source, Image.Image):
            raise InputError("a video's frames are a sequence of pictures, not one: [picture]")
        try:
            frames = tuple(source)
        except TypeError as error:
            raise InputError(
                f"a video's frames are a sequence of paths or pictures, not {type(source).__name__}"
            ) from error
        if not frames:
            raise InputError("the video has no frames: pass at least one")
        object.__setattr__(self, "frames", frames)
        if self.seconds is not None:
            seconds = _checked_seconds(self.seconds, len(frames), repeats=self.may_repeat)
            object.__setattr__(self, "seconds", seconds)

    @property
    def rate(self) -> float:
        """Frames per second, on average; 1 for one frame, which has none.

        Raises
        ------
        InputError
            If the times are not known.
        """
        if self.seconds is None:
            raise InputError("the video has no times: pass Video(frames, seconds=...)")
        length = self.seconds[-1] - self.seconds[0]
        return (len(self.frames) - 1) / length if length else 1.0

    def metadata(self) -> dict[str, Any]:
        """Describe frames as transformers' ``VideoMetadata`` does: by index at a constant rate.

        At the mean rate, the index of a frame that is early or late is not a whole number; what is
        read off it, ``index / fps``, is the frame's time.
        """
        rate = self.rate
        return {
            "total_num_frames": len(self.frames),
            "fps": rate,
            "frames_indices": [time * rate for time in self.seconds or ()],
        }


@dataclass(frozen=True)
class Frames:
    """The frames of a video that share image tokens: what one picture of a layout stands for."""

    video: int  # Index among the videos of the prompt
    # First and last of the frames, counted from 0
    first: int
    last: int
    # When these two were taken; None where that is not known
    seconds: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """Time, or numbers counted from 1: ``"0:01.0–0:01.5"``, ``"frames 1–2"``."""
        if self.seconds is not None:
            return "–".join(dict.fromkeys(map(_clock, self.seconds)))
        if self.first == self.last:
            return f"frame {self.first + 1}"
        return f"frames {self.first + 1}–{self.last + 1}"

    def to_dict(self) -> dict[str, Any]:
        """Return a form that JSON can hold."""
        seconds = None if self.seconds is None else list(self.seconds)
        return {"video": self.video, "first": self.first, "last": self.last, "seconds": seconds}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Frames:
        """Rebuild what :meth:`to_dict` gave."""
        seconds = plain["seconds"]
        if seconds is not None:
            start, end = seconds
            seconds = (float(start), float(end))
        return cls(int(plain["video"]), int(plain["first"]), int(plain["last"]), seconds)


def open_video(video: Video) -> Video:
    """Read a video's frames as upright RGB pictures.

    Raises
    ------
    InputError
        If a frame cannot be read (see :func:`vlmflow.lvlm.images.open_image`), or one has another
        size than the first.
    """
    frames = [open_image(frame) for frame in video.frames]
    for number, frame in enumerate(frames):
        if frame.size != frames[0].size:
            (wide, tall), (width, height) = frames[0].size, frame.size
            raise InputError(
                f"frame {number} of the video is {width} x {height} pixels, but frame 0 is "
                f"{wide} x {tall}: all frames of a video have one size"
            )
    return replace(video, frames=tuple(frames))


def frame_groups(video: Video, number: int, together: int) -> list[tuple[Image.Image, Frames]]:
    """Cut an opened video into the groups of frames that share image tokens.

    ``number`` is its index among the videos of the prompt. Groups have ``together`` frames, the
    last may have fewer. Each comes with its first frame, which stands for it.
    """
    groups = []
    for first in range(0, len(video.frames), together):
        last = min(first + together, len(video.frames)) - 1
        seconds = None if video.seconds is None else (video.seconds[first], video.seconds[last])
        picture = cast(Image.Image, video.frames[first])
        groups.append((picture, Frames(number, first, last, seconds)))
    return groups


def _checked_seconds(seconds: Sequence[float], frames: int, *, repeats: bool) -> tuple[float, ...]:
    try:
        times = tuple(float(time) for time in seconds)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the times of a video's frames are numbers of seconds, not {seconds!r}"
        ) from error
    if len(times) != frames:
        raise InputError(f"the video has {frames} frame(s) but {len(times)} time(s): one for each")
    if not all(math.isfinite(time) and time >= 0 for time in times):
        raise InputError("the times of a video's frames are seconds from its start: at least 0")
    for number, (time, later) in enumerate(pairwise(times)):
        if later < time or (later == time and not repeats):
            raise InputError(
                f"the times of a video's frames must increase, but frame {number} is at {time} s "
                f"and frame {number + 1} at {later} s"
            )
    return times


def _clock(seconds: float) -> str:
    """Write a time as a player does, in hundredths where there are any, else in tenths."""
    minutes, hundredths = divmod(round(100 * seconds), 6000)
    hours, minutes = divmod(minutes, 60)
    begin = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{begin}:{hundredths / 100:05.2f}".removesuffix("0")
