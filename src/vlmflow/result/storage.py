"""One result on disk: ``flow.json`` and ``flow.safetensors``, written and read as a pair.

No pickle: opening a file from a stranger runs nothing. Each file carries a digest of the other's
content, so that a truncated file, a changed one, or two halves of different saves are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.files import as_path, write_files

FORMAT_VERSION = 2
JSON_NAME = "flow.json"
TENSORS_NAME = "flow.safetensors"

Arrays = Mapping[str, npt.NDArray[Any]]


def as_json(value: Any, name: str) -> Any:
    """Return a value in JSON's own types, so that saving and loading gives it back unchanged.

    Texts, numbers, booleans, None, and lists, tuples and mappings with text keys of those can be
    saved; ``name`` is what an error calls the value. Tuples become lists, numpy scalars Python's
    numbers, and numbers that JSON cannot hold (NaN, infinity) the texts ``"nan"``, ``"inf"`` and
    ``"-inf"``.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, (list, tuple)):
        return [as_json(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): as_json(item, f"{name}[{key!r}]") for key, item in value.items()}
    raise InputError(
        f"{name} is a {type(value).__name__}, but only texts, numbers, booleans, None, "
        "lists and dicts with text keys can be saved"
    )


def _digest(body: Mapping[str, Any]) -> str:
    """Digest of what a JSON body says, whatever its white space and order of keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write_pair(directory: str | os.PathLike[str], body: Mapping[str, Any], arrays: Arrays) -> Path:
    """Write a JSON body (see :func:`as_json`) and its arrays as one pair of files, or nothing.

    A pair already in the directory is replaced. Returns and raises as
    :func:`vlmflow.files.write_files` does.
    """
    return write_files(directory, pair(body, arrays))


def pair(body: Mapping[str, Any], arrays: Arrays) -> dict[str, bytes]:
    """Return what :func:`write_pair` writes, by file name."""
    from safetensors.numpy import save

    tensors = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        # One entry only: safetensors writes several in any order, and equal results should give
        # equal files.
        metadata={"json_digest": _digest(body)},
    )
    document = {
        "format_version": FORMAT_VERSION,
        "tensors_digest": hashlib.sha256(tensors).hexdigest(),
        "result": body,
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    return {TENSORS_NAME: tensors, JSON_NAME: text.encode("ascii")}


def _refuse_constant(literal: str) -> Any:
    raise ValueError(f"{literal} is not JSON")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error.strerror}); "
            "name a directory that InformationFlow.save wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is truncated or not JSON ({type(error).__name__}); "
            "save the result again"
        ) from error
    versioned = isinstance(document, dict) and "format_version" in document
    if versioned and document["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{str(path)!r} has format_version {document['format_version']!r}, but this vlmflow "
            f"reads version {FORMAT_VERSION}; open it with the vlmflow that wrote it"
        )
    whole = versioned and isinstance(document.get("result"), dict) and "tensors_digest" in document
    if not whole:
        raise InputError(f"{str(path)!r} is JSON, but not one that InformationFlow.save wrote")
    return document


def read_pair(
    directory: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read what :func:`write_pair` wrote: the JSON body and the arrays.

    Raises
    ------
    InputError
        If a file is missing, truncated, changed, of an unknown version, or the two files do not
        belong to one save.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    folder = as_path(directory)
    document = _read_json(folder / JSON_NAME)
    path = folder / TENSORS_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error.strerror}); it belongs beside {JSON_NAME}"
        ) from error
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(content)
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(path)!r} is truncated or not a safetensors file; save the result again"
        ) from error
    body: dict[str, Any] = document["result"]
    same_tensors = hashlib.sha256(content).hexdigest() == document["tensors_digest"]
    try:
        same_body = metadata.get("json_digest") == _digest(body)
    except ValueError:  # a number beyond floating point reads as infinity
        same_body = False
    if not (same_tensors and same_body):
        raise InputError(
            f"{JSON_NAME} and {TENSORS_NAME} in {str(folder)!r} do not belong to the same save, "
            "or one was changed since; save the result again"
        )
    return body, arrays
