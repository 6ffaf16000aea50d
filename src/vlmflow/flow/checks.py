"""What a result accepts: arrays that fit, indices that exist."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError


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
