"""From a name on the command line to a task, and a list of all names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import TASKS
from vlmflow.tasks.base import Task
from vlmflow.tasks.hub.catalogue import CATALOGUE
from vlmflow.tasks.scenes import DESCRIPTIONS, metric_name


@dataclass(frozen=True)
class KnownTask:
    """A task that :func:`task` finds by its name alone.

    Attributes
    ----------
    name, metric, description
        What to ask for, what its score is, and one line about it.
    hub
        Id of the data set on the Hugging Face hub; empty for a bundled task.
    """

    name: str
    metric: str
    description: str
    hub: str = ""


def known_tasks() -> tuple[KnownTask, ...]:
    """List all tasks, the bundled ones first; nothing is opened or imported for it."""
    bundled = (KnownTask(name, metric_name(name), DESCRIPTIONS[name]) for name in TASKS)
    return (
        *bundled,
        *(
            KnownTask(name, data.metric.name, data.description, data.hub[0])
            for name, data in CATALOGUE.items()
        ),
    )


def task(name: str) -> Task:
    """Find a task by its name, or read one from a ``.jsonl`` or ``.csv`` file.

    Parameters
    ----------
    name : str
        A name of :func:`known_tasks`; ``NAME@DIRECTORY`` or ``NAME@OWNER/NAME`` for a data set of
        the hub that is in a local directory, or elsewhere on the hub, in the same form; or a file.

    Raises
    ------
    InputError
        If there is no such task or file, or a package it needs is missing.
    """
    if name in TASKS:
        from vlmflow.tasks.scenes import ScenesTask

        return ScenesTask(name)
    data, _, source = name.partition("@")
    if data in CATALOGUE:
        from vlmflow.tasks.hub.task import HubTask

        if name.endswith("@"):
            raise InputError(f"task {name!r} names no directory; write {data}@DIRECTORY")
        return HubTask(data, source or None)
    path = Path(name)
    if path.suffix.lower() in (".jsonl", ".csv"):
        from vlmflow.tasks.folder import FolderTask

        return FolderTask(path)
    raise InputError(
        f"unknown task {name!r}; there are {', '.join((*TASKS, *CATALOGUE))}, or give a .jsonl or "
        ".csv file"
    )
