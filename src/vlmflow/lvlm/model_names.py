"""What a model's name stands for: bundled, a directory, or a name on the hub. Needs no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlmflow.bundled.shelf import bundled_directory, bundled_models
from vlmflow.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_source(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """Return what ``from_pretrained`` is given, and whether it is on this machine.

    Raises
    ------
    ModelError
        As :func:`check_model_name`; also if a bundled model cannot be put together.
    """
    text = os.fspath(name)
    check_model_name(name)
    if text in bundled_models():
        return str(bundled_directory(text)), True
    path = Path(text).expanduser()
    return (str(path), True) if path.is_dir() else (text, False)


def check_model_name(name: str | os.PathLike[str]) -> None:
    """Refuse a name of no bundled model, no model's directory, and that no hub could know.

    Raises
    ------
    ModelError
        With what the name is instead.
    """
    text = os.fspath(name)
    if text in bundled_models():
        return
    path = Path(text).expanduser()
    if text and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{text} is a directory but not a model: it has no config.json, which "
                "save_pretrained writes"
            )
        return
    if text and path.exists():
        raise ModelError(f"{text} is a file: give the directory that save_pretrained wrote")
    if _HUB_ID.fullmatch(text) and not text.startswith("."):
        return
    names = ", ".join(bundled_models()) or "none here"
    raise ModelError(
        f"there is no model {text!r}: it is not a bundled name ({names}), a directory or "
        "a hub id of the form owner/model"
    )
