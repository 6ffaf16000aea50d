"""The layout: the segment of every position, and the pixels of every image token."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import Grid, ImageGrid, IntArray, SharedGrid, frozen
from vlmflow.lvlm.videos import Frames


class Segment(enum.IntEnum):
    """What a position of the decoder's sequence carries."""

    PAD = -1
    SYSTEM = 0
    IMAGE = 1
    USER = 2
    ANSWER = 3


SEGMENTS: tuple[str, ...] = ("system", "image", "user", "answer")
"""Names of the segments in the order of every segment axis (padding has no place there)."""


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Segment of every position of one prompt, and the box of every image token.

    ``system`` is everything before the first image token, ``user`` the text after it up to the
    answer (text between two pictures is ``user`` too).

    Parameters
    ----------
    segments : (N,) int8
        :class:`Segment` of every position of the EXPANDED sequence.
    tokens : tuple of N str
        What each position reads as; joined, the text tokens give the text.
    image_sizes : tuple of (width, height)
        Size of every original picture in pixels, in the order of the prompt. A video counts as one
        picture for every group of its frames that share image tokens.
    grids : tuple of Grid
        Empty where nothing is known about the pixels of the tokens.
    grids_missing : str
        One sentence that says why ``grids`` is empty; empty where it is not.
    frames : tuple of (Frames or None)
        For every picture the frames of a video that it stands for; None where it is a picture of
        its own. Empty where all are.
    """

    segments: npt.NDArray[np.int8]
    tokens: tuple[str, ...]
    image_sizes: tuple[tuple[int, int], ...]
    grids: tuple[Grid, ...] = ()
    grids_missing: str = ""
    frames: tuple[Frames | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", frozen(self.segments, np.int8))
        if self.frames and len(self.frames) != len(self.image_sizes):
            raise InputError(
                f"a layout says of each of its {len(self.image_sizes)} picture(s) or of none which "
                f"frames of a video it is, not of {len(self.frames)}"
            )
        if self.segments.shape != (len(self.tokens),):
            raise InputError(
                f"a layout needs one token text per position, not {len(self.tokens)} texts "
                f"for {self.segments.size} positions"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def positions_of(self, segment: Segment) -> IntArray:
        """Return the positions of one segment in order, ``(n,)``."""
        return np.flatnonzero(self.segments == segment)

    @property
    def image_positions(self) -> IntArray:
        """``(P,)``: positions of all image tokens of all pictures, in order."""
        return self.positions_of(Segment.IMAGE)

    @property
    def answer_positions(self) -> IntArray:
        """``(T,)``: positions of the answer tokens."""
        return self.positions_of(Segment.ANSWER)

    @property
    def answer_rows(self) -> IntArray:
        """``(T,)``: the positions whose logits PREDICT the answer tokens, one before each."""
        return self.answer_positions - 1

    @property
    def user_rows(self) -> IntArray:
        """User positions that do not predict an answer token."""
        return np.setdiff1d(self.positions_of(Segment.USER), self.answer_rows)

    @property
    def text_rows(self) -> IntArray:
        """User rows and answer rows together, sorted."""
        return np.union1d(self.user_rows, self.answer_rows)

    def frames_label(self, image: int) -> str:
        """Say which frames of a video a picture stands for; empty where it stands for itself."""
        frames = self.frames[image] if self.frames else None
        if frames is None:
            return ""
        several = len({group.video for group in self.frames if group is not None}) > 1
        return f"video {frames.video + 1}, {frames.label}" if several else frames.label

    def shifted(self, offset: int, total: int) -> TokenLayout:
        """Put the same layout at ``offset`` of a longer, padded sequence of ``total`` positions.

        Raises
        ------
        InputError
            If the layout does not fit.
        """
        after = total - offset - len(self)
        if offset < 0 or after < 0:
            raise InputError(
                f"a layout of {len(self)} positions does not fit at offset {offset} of {total}"
            )
        return TokenLayout(
            segments=np.pad(self.segments, (offset, after), constant_values=Segment.PAD),
            tokens=("",) * offset + self.tokens + ("",) * after,
            image_sizes=self.image_sizes,
            grids=tuple(replace(grid, positions=grid.positions + offset) for grid in self.grids),
            grids_missing=self.grids_missing,
            frames=self.frames,
        )

    def to_dict(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Take the layout apart for :meth:`from_dict`: what JSON can hold, and named arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {"segments": np.array(self.segments)}
        for index, grid in enumerate(self.grids):
            arrays[f"grid{index}_positions"] = np.array(grid.positions)
            arrays[f"grid{index}_boxes"] = np.array(grid.boxes)
            if isinstance(grid, SharedGrid):
                arrays[f"grid{index}_looks"] = np.array(grid.looks)
        plain = {
            "tokens": list(self.tokens),
            "image_sizes": [list(size) for size in self.image_sizes],
            "grids": [
                {"image": grid.image, "kind": grid.kind}
                | ({"how": grid.how} if isinstance(grid, SharedGrid) else {})
                for grid in self.grids
            ],
            "grids_missing": self.grids_missing,
            "frames": [None if group is None else group.to_dict() for group in self.frames],
        }
        return plain, arrays

    @classmethod
    def from_dict(
        cls, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> TokenLayout:
        """Rebuild the layout that :meth:`to_dict` took apart."""
        grids: Sequence[Mapping[str, Any]] = plain["grids"]
        return cls(
            segments=arrays["segments"],
            tokens=tuple(plain["tokens"]),
            image_sizes=tuple((int(width), int(height)) for width, height in plain["image_sizes"]),
            grids=tuple(
                _grid_of(grid, arrays, f"grid{index}_") for index, grid in enumerate(grids)
            ),
            grids_missing=str(plain["grids_missing"]),
            frames=tuple(
                None if group is None else Frames.from_dict(group) for group in plain["frames"]
            ),
        )


def _grid_of(plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Grid:
    """Rebuild one grid of :meth:`TokenLayout.to_dict`."""
    image, kind = int(plain["image"]), str(plain["kind"])
    positions, boxes = arrays[f"{name}positions"], arrays[f"{name}boxes"]
    if "how" not in plain:
        return ImageGrid(image, positions, boxes, kind)
    looks, how = arrays[f"{name}looks"], str(plain["how"])
    return SharedGrid(image, positions, boxes, kind, looks=looks, how=how)
