"""What a result accepts: arrays that fit, indices that exist."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.lvlm.layout import TokenLayout


def read_only(value: Any, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> Any:
    """Return a read-only view in the stored type, or refuse what does not fit.

    Parameters
    ----------
    value : array-like
    name : str
        What the value is called in an error.
    dtype, shape
        What is stored.

    Raises
    ------
    InputError
        If the shape differs or a value is NaN or infinite.
    """
    try:
        with np.errstate(over="ignore"):  # what overflows float32 is refused below
            array = np.asarray(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of {np.dtype(dtype).name}") from error
    if array.shape != tuple(shape):
        raise InputError(f"{name} must have shape {tuple(shape)}, not {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(
            f"{name} holds values that are not finite; measure again in float32 or bfloat16"
        )
    view = array.view()
    view.setflags(write=False)
    return view


def plural(count: int, noun: str) -> str:
    """Return "1 layer", "2 layers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def valid_index(name: str, value: int, count: int, has: str) -> int:
    """Return a valid index, or raise an error that names the valid ones.

    Parameters
    ----------
    name, has : str
        What is indexed, and what there is of it: "this model has 12 decoder layers".
    value, count : int
        The index, and how many there are; negative indices do not wrap around.

    Raises
    ------
    InputError
        If the index is not one of 0 to ``count - 1``.
    """
    try:
        index = operator.index(value)
    except TypeError:
        index = -1
    if isinstance(value, bool) or not 0 <= index < count:
        raise InputError(f"{name}={value!r}, but {has} (0..{count - 1})")
    return index


def check_grids(layout: TokenLayout) -> None:
    """Raise InputError if a grid is of no picture, or not of image tokens."""
    images = range(len(layout.image_sizes))
    for index, grid in enumerate(layout.grids):
        inside = np.isin(grid.positions, layout.image_positions).all()
        if grid.image not in images or not inside or not grid.positions.size:
            raise InputError(f"grid {index} of the layout does not lie on its image tokens")


def display_copies(
    pictures: Sequence[npt.ArrayLike], layout: TokenLayout
) -> tuple[npt.NDArray[np.uint8], ...]:
    """Return one read-only (height, width, 3) uint8 copy per picture of the layout.

    Raises
    ------
    InputError
        If there are more or fewer, or one is no such array.
    """
    sizes = layout.image_sizes
    if len(pictures) != len(sizes):
        raise InputError(
            f"pictures must hold one copy per picture of the layout: it has {len(sizes)}, "
            f"but {len(pictures)} were given"
        )
    copies = []
    for index, picture in enumerate(pictures):
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise InputError(
                f"pictures[{index}] must be (height, width, 3) uint8, "
                f"not {array.shape} {array.dtype}"
            )
        copies.append(read_only(array, f"pictures[{index}]", np.uint8, array.shape))
    return tuple(copies)
