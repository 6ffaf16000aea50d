"""Grids: the pixels of image tokens, and what a map over tokens says of each of their boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def frozen(array: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make a private, read-only copy: what many share is changed by nobody."""
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True, eq=False)
class Grid(ABC):
    """A rectangle of boxes over a picture, each with a value that image tokens give it.

    Parameters
    ----------
    image : int
        Index of the picture in the prompt.
    positions : int64
        Positions of its image tokens in the expanded sequence.
    boxes : (rows, cols, 4) float64
        ``x0, y0, x1, y1`` of each in the ORIGINAL picture's pixels. Boxes tile: a row shares its
        ``y0, y1``, a column its ``x0, x1``. They stick out of the picture where the image processor
        padded it.
    kind : str
        ``"full"`` for a grid over the whole (cropped) picture; families that cut pictures into
        tiles name theirs.
    """

    image: int
    positions: IntArray
    boxes: FloatArray
    kind: str = "full"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", frozen(self.positions, np.int64))
        object.__setattr__(self, "boxes", frozen(self.boxes, np.float64))
        if self.boxes.ndim != 3 or self.boxes.shape[2] != 4:
            raise InputError(f"a grid needs boxes (rows, cols, 4), not {self.boxes.shape}")
        same_columns = (self.boxes[:, :, 0::2] == self.boxes[:1, :, 0::2]).all()
        same_rows = (self.boxes[:, :, 1::2] == self.boxes[:, :1, 1::2]).all()
        if not (same_columns and same_rows):
            raise InputError("the boxes of a grid must share their edges along rows and columns")

    @abstractmethod
    def values(self, values: FloatArray, image_positions: IntArray) -> FloatArray:
        """Return the value of every box.

        Parameters
        ----------
        values : (P,) float64
            One value per image token of the prompt.
        image_positions : (P,) int64
            :attr:`vlmflow.lvlm.layout.TokenLayout.image_positions`.

        Returns
        -------
        (rows, cols) float64
        """

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""
        rows, cols, _ = self.boxes.shape
        return rows, cols

    @property
    def x_edges(self) -> FloatArray:
        """``(cols, 2)``: left and right edge of every column of boxes, in pixels."""
        return self.boxes[0, :, 0::2]

    @property
    def y_edges(self) -> FloatArray:
        """``(rows, 2)``: upper and lower edge of every row of boxes, in pixels."""
        return self.boxes[:, 0, 1::2]


class ImageGrid(Grid):
    """A rectangle of image tokens and the pixels each one came from: ``positions`` (rows, cols).

    Raises
    ------
    InputError
        If the boxes do not belong to the positions or do not form a grid.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions.ndim != 2 or self.boxes.shape != (*self.positions.shape, 4):
            raise InputError(
                f"a grid needs positions (rows, cols) and boxes (rows, cols, 4), "
                f"not {self.positions.shape} and {self.boxes.shape}"
            )

    def values(self, values: FloatArray, image_positions: IntArray) -> FloatArray:
        """Return the value of each box's token; see :meth:`Grid.values`."""
        return values[np.searchsorted(image_positions, self.positions)]


@dataclass(frozen=True, eq=False)
class SharedGrid(Grid):
    """A rectangle of patches that a few image tokens share: each looks at all of them.

    A token's value is spread over the patches as its looks are, so that maps keep their sum.

    Parameters
    ----------
    positions : (Q,) int64
        See :class:`Grid`.
    looks : (Q, rows, cols) float64
        How much of each token's look goes to each patch; at least 0, and 1 in all for a token.
    how : str
        Where the looks come from, as captions say it.

    Raises
    ------
    InputError
        If the looks do not belong to tokens and boxes, or are not shares.
    """

    looks: FloatArray = field(kw_only=True)
    how: str = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "looks", frozen(self.looks, np.float64))
        expected_shape = (self.positions.size, *self.shape)
        if self.positions.ndim != 1 or self.looks.shape != expected_shape:
            raise InputError(
                f"a shared grid needs positions (Q,) and looks (Q, rows, cols), "
                f"not {self.positions.shape} and {self.looks.shape} for {self.shape} boxes"
            )
        if (self.looks < 0).any() or not np.allclose(self.looks.sum((1, 2)), 1, atol=1e-6):
            raise InputError(
                "the looks of a token must be at least 0 and sum to 1 over the patches"
            )

    def values(self, values: FloatArray, image_positions: IntArray) -> FloatArray:
        """Return what the tokens give to each patch; see :meth:`Grid.values`."""
        own = values[np.searchsorted(image_positions, self.positions)]
        spread: FloatArray = np.tensordot(own, self.looks, axes=1)
        return spread
