"""From a name on the command line to a task, and a list of all names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeAlias, Union

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import ALL_TASKS, CLIPS
from vlmflow.tasks.base import Task
from vlmflow.tasks.hub.catalogue import CATALOGUE
from vlmflow.tasks.mixture import PLUS, Mixture
from vlmflow.tasks.scenes import DESCRIPTIONS, metric_name

GROUP = "vlmflow.tasks"
"""Entry points in which other packages offer theirs."""

MIXED = "scenes-mixed"
MIXED_TASKS = ("scenes-reasoning", "scenes-existence", "scenes-reading", "scenes-caption")
"""A mixture of easy and hard questions, of short and long answers."""

TaskLike: TypeAlias = Union[str, "os.PathLike[str]", Task]
"""How a user gives a task: its name, the path of a file of questions, or an object."""

INTERFACE = (
    *("name", "metric", "by_itself", "max_new_tokens"),
    *("samples", "score", "scores", "summary"),
)
"""What every task has, see :class:`vlmflow.tasks.base.Task`."""


@dataclass(frozen=True)
class KnownTask:
    """A task that :func:`find_task` finds by its name alone."""

    name: str
    metric: str  # What its score is
    description: str  # One line
    hub: str = ""  # Id of the data set on the Hugging Face hub; empty for a bundled task


def known_tasks() -> tuple[KnownTask, ...]:
    """List all tasks, the bundled ones first; nothing is opened or imported for it."""
    bundled = (
        KnownTask(name, metric_name(name), DESCRIPTIONS[name]) for name in (*ALL_TASKS, CLIPS)
    )
    return (
        *bundled,
        KnownTask(MIXED, "score", "a quarter each of four of them, for choices per question"),
        *(
            KnownTask(name, data.metric.name, data.description, data.hub[0])
            for name, data in CATALOGUE.items()
        ),
        *(
            KnownTask(entry.name, "", f"from {entry.value}")
            for entry in metadata.entry_points(group=GROUP)
        ),
    )


def as_task(task: TaskLike) -> Task:
    """Return the task that a user names (:func:`find_task`), by its file's path too, or hands over.

    Raises
    ------
    InputError
        If there is no such task, or the object lacks a part of the interface of
        :class:`vlmflow.tasks.base.Task`.
    """
    if isinstance(task, str | os.PathLike):
        return find_task(os.fspath(task))
    if isinstance(task, type):
        raise InputError(f"task={task.__name__} is a class; pass an instance: {task.__name__}()")
    missing = [name for name in INTERFACE if getattr(task, name, None) is None]
    if missing:
        raise InputError(
            f"task={type(task).__name__} has no {' and no '.join(missing)}: derive it from "
            "vlmflow.Task"
        )
    return task


def address_of(task: Task) -> str:
    """Return what :func:`find_task` finds a task by, where it can; see :attr:`Task.address`."""
    return getattr(task, "address", task.name)  # not every task is derived from Task


def _loaded(entry: metadata.EntryPoint) -> Task:
    """Load a task of another package: an instance, or a class or function that makes one."""
    loaded = entry.load()
    try:
        made = loaded() if callable(loaded) else loaded
    except TypeError as error:
        raise InputError(
            f"entry point {entry.value!r} of {GROUP} makes no task without arguments: {error}"
        ) from error
    return as_task(made)


def find_task(name: str) -> Task:
    """Find a task by its name, or read one from a ``.jsonl`` or ``.csv`` file.

    A name is one of :func:`known_tasks`; or ``NAME@DIRECTORY`` or ``NAME@OWNER/NAME`` for a data
    set of the hub that is in a local directory, or elsewhere on the hub, in the same form; or
    several names joined by ``+``, for a mixture.

    Raises
    ------
    InputError
        If there is no such task or file, or a package it needs is missing.
    """
    if name == MIXED:
        return Mixture([find_task(part) for part in MIXED_TASKS], MIXED)
    if PLUS in name and not Path(name).is_file():
        return Mixture([find_task(part.strip()) for part in name.split(PLUS)])
    if name in ALL_TASKS:
        from vlmflow.tasks.scenes import ScenesTask

        return ScenesTask(name)
    if name == CLIPS:
        from vlmflow.tasks.clips import ClipsTask

        return ClipsTask()
    data, _, source = name.partition("@")
    if data in CATALOGUE:
        from vlmflow.tasks.hub.task import HubTask

        if name.endswith("@"):
            raise InputError(f"task {name!r} names no directory; write {data}@DIRECTORY")
        return HubTask(data, source or None)
    installed = metadata.entry_points(group=GROUP, name=name)
    if installed:
        return _loaded(next(iter(installed)))
    path = Path(name)
    if path.suffix.lower() in (".jsonl", ".csv"):
        from vlmflow.tasks.folder import FolderTask

        return FolderTask(path)
    names = ", ".join((*ALL_TASKS, CLIPS, MIXED, *CATALOGUE))
    raise InputError(f"unknown task {name!r}; there are {names}, or give a .jsonl or .csv file")
