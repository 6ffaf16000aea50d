"""From a name on the command line to a task."""

from __future__ import annotations

from pathlib import Path

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import TASKS
from vlmflow.tasks.base import Task


def task(name: str) -> Task:
    """Find a task by its name, or read one from a ``.jsonl`` or ``.csv`` file.

    Raises
    ------
    InputError
        If there is no such task or file.
    """
    if name in TASKS:
        from vlmflow.tasks.scenes import ScenesTask

        return ScenesTask(name)
    path = Path(name)
    if path.suffix.lower() in (".jsonl", ".csv"):
        from vlmflow.tasks.folder import FolderTask

        return FolderTask(path)
    raise InputError(
        f"unknown task {name!r}; there are {', '.join(TASKS)}, or give a .jsonl or .csv file"
    )
