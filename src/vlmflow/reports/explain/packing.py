"""Arrays as text inside a page: coded in few bits, compressed, with an index."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def coded(values: Array, bits: int) -> tuple[Array, npt.NDArray[np.float32]]:
    """Values >= 0 as integers against the largest of each row (last axis), on a square-root scale.

    ``value = top * (code / (2**bits - 1)) ** 2``. The square root keeps small values apart, which a
    linear code would round to 0 beside one large one. Returns the codes, and the float32 tops
    without the last axis.
    """
    levels = 2**bits - 1
    clean = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    clean = np.maximum(clean, 0.0)
    top = clean.max(axis=-1, keepdims=True, initial=0.0)
    share = np.divide(clean, top, out=np.zeros_like(clean), where=top > 0)
    codes = np.rint(np.sqrt(share) * levels).astype(np.uint8 if bits <= 8 else np.uint16)
    return codes, top[..., 0].astype(np.float32)


def with_codes(arrays: dict[str, Array], name: str, values: Array, bits: int) -> None:
    """Add an array's codes under its name, and their tops under its name and ``.top``."""
    arrays[name], arrays[f"{name}.top"] = coded(values, bits)


def packed(arrays: dict[str, Array]) -> dict[str, Any]:
    """Named arrays as one compressed base64 text and an index into it."""
    index: dict[str, Any] = {}
    body = bytearray()
    for name, array in arrays.items():
        body.extend(b"\0" * (-len(body) % 8))  # typed arrays start at multiples of their width
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        index[name] = [array.dtype.name, list(array.shape), len(body)]
        body.extend(little.tobytes())
    return {"index": index, "bytes": base64.b64encode(gzip.compress(body, 6, mtime=0)).decode()}
