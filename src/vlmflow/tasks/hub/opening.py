"""Open a split of a data set: from the hub, from its cache, or from a local copy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError
from vlmflow.tasks.hub.rows import Rows

_REASON = 160
"""Characters of a library's message that are passed on."""


def check_installed(task: str) -> None:
    """Refuse a task where the package that reads it is missing."""
    if find_spec("datasets") is None:
        raise InputError(
            f'task {task!r} needs the package "datasets"; run: pip install "vlmflow[data]"'
        )


def check_source(source: str, task: str) -> None:
    """Refuse a source that is neither a directory nor looks like an id of the hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        return
    parts = source.split("/")
    if path.exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise InputError(
            f"task {task!r}: {source!r} is not a directory; give one that holds the data set as "
            "the hub does, or OWNER/NAME on the hub"
        )


def open_split(sources: tuple[str, ...], task: str, config: str | None, split: str) -> Rows:
    """Open a split at the first source that has it; nothing from there is executed.

    Sources are directories or ids of the hub; ``config`` and ``split`` are the hub's names. A
    directory that has a single configuration needs no name for it. ``task`` is for messages.

    Raises
    ------
    InputError
        If no source can be opened, with each one's reason.
    """
    reasons = []
    for source in sources:
        try:
            dataset = _load(source, config, split)
        except Exception as error:  # datasets, pyarrow and the hub's client raise nearly any type
            reasons.append(f"{source}: {_reason(error)}")
            continue
        return Rows(dataset.with_format("arrow"), f"split {split!r} of {source!r}")
    local = any(Path(source).expanduser().is_dir() for source in sources)
    way_out = (
        "the directory has to hold the data set's files as they are on the hub"
        if local
        else f"check the id and the network, or give a local copy: {task}@DIRECTORY"
    )
    raise InputError(
        f"split {split!r} of task {task!r} cannot be opened ({'; '.join(reasons)}); {way_out}"
    )


def _load(source: str, config: str | None, split: str) -> Any:
    import datasets

    directory = Path(source).expanduser()
    if directory.is_dir():
        source = str(directory)
        names = datasets.get_dataset_config_names(source)
        if config not in names and len(names) == 1:
            config = names[0]
    return datasets.load_dataset(source, config, split=split)


def _reason(error: Exception) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    text = " ".join((str(error) or str(cause)).split()) or type(error).__name__
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."
