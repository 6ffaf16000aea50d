"""What is to be run again: a table, one of its models, and where its data sets are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError, ModelError
from vlmflow.parameters import check_integer
from vlmflow.reproductions.published import (
    PublishedData,
    PublishedFigure,
    PublishedModel,
    PublishedTable,
    published_table,
)
from vlmflow.tasks.hub.task import HubTask


@dataclass(frozen=True)
class Request:
    """A table, one of its models, and how much of it is run.

    Raises
    ------
    InputError
        For a table, model or data set that does not exist, or that does not run here.
    """

    table_name: str
    model: str = ""  # What :func:`vlmflow.load` takes; empty: the table's first model
    stands_for: str = ""  # Hub id of the table's model that it is; empty: its own name
    samples: int | None = None  # Of every data set; None: as many as the table has
    only: tuple[str, ...] = ()  # Data sets to run; none: all
    sources: tuple[tuple[str, str], ...] = ()  # Directories of local copies, by data set
    seed: int = 0  # Of bootstraps

    def __post_init__(self) -> None:
        if self.samples is not None:
            check_integer("samples", self.samples, 1)
        check_integer("seed", self.seed)
        self._check_names("--only", self.only)
        self._check_names("--data", [name for name, _ in self.sources])
        if not self.data:
            raise InputError(
                f"nothing of table {self.table_name} runs on {self.published_model.called}"
            )

    @property
    def table(self) -> PublishedTable:
        """The table."""
        return published_table(self.table_name)

    @property
    def published_model(self) -> PublishedModel:
        """The table's model that is run.

        Raises
        ------
        InputError
            If it has none of that name.
        """
        runnable = [model for model in self.table.models if model.hub]
        name = self.stands_for or self.model
        if not name:
            return runnable[0]
        for model in runnable:
            if name == model.hub:
                return model
        ids = ", ".join(model.hub for model in runnable)
        for model in self.table.models:
            if name == model.called and model.missing:
                raise InputError(f"{name} does not run here: {model.missing}; there are {ids}")
        way_out = "" if self.stands_for else f"; say which one it is: --as {runnable[0].hub}"
        raise InputError(f"table {self.table_name} has no model {name!r}, only {ids}{way_out}")

    @property
    def model_name(self) -> str:
        """What is loaded."""
        return self.model or self.published_model.hub

    @property
    def data(self) -> tuple[PublishedData, ...]:
        """The data sets that are run, with at least one figure of the model each."""
        tasks = {figure.data for figure in self.figures if not self.why_not(figure)}
        return tuple(data for data in self.table.data if data.task in tasks)

    @property
    def figures(self) -> tuple[PublishedFigure, ...]:
        """All figures of the model, whether or not they run."""
        called = self.published_model.called
        return tuple(figure for figure in self.table.figures if figure.model == called)

    def figures_of(self, data: PublishedData) -> tuple[PublishedFigure, ...]:
        """Return the figures of a data set that are run."""
        return tuple(
            figure
            for figure in self.figures
            if figure.data == data.task and not self.why_not(figure)
        )

    def policies(self, data: PublishedData) -> tuple[str, ...]:
        """Return what is removed on a data set."""
        return tuple(
            dict.fromkeys(figure.policy for figure in self.figures_of(data) if figure.policy)
        )

    def signals(self, data: PublishedData) -> tuple[str, ...]:
        """Return the signals whose maps are tested on a data set."""
        return tuple(
            dict.fromkeys(figure.signal for figure in self.figures_of(data) if figure.signal)
        )

    def why_not(self, figure: PublishedFigure) -> str:
        """Say why a figure is not run; empty where it is."""
        if figure.model != self.published_model.called:
            other = next(model for model in self.table.models if model.called == figure.model)
            return self.table.why_not(figure) or f"another model: --model {other.hub}"
        why = self.table.why_not(figure)
        if not why and self.only and figure.data not in self.only:
            return f"left out by --only {','.join(self.only)}"
        return why

    def count(self, data: PublishedData) -> int:
        """Return how many samples of a data set are asked."""
        return min(data.samples, self.samples or data.samples)

    def task(self, data: PublishedData) -> HubTask:
        """Open a data set where the user has it.

        Raises
        ------
        InputError
            If that is no directory, or a package is missing.
        """
        return HubTask(data.task, dict(self.sources).get(data.task))

    def check_config(self, config: Any) -> None:
        """Refuse a model of another type than the one it stands for.

        Raises
        ------
        ModelError
            If it is.
        """
        model = self.published_model
        if config.model_type != model.type:
            raise ModelError(
                f"{self.model_name} is of type {config.model_type!r}, but {model.hub} is of type "
                f"{model.type!r}; give a copy of that one"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON can hold it."""
        return {
            "table": self.table_name,
            "model": self.model_name,
            "stands_for": self.published_model.hub,
            "samples": self.samples,
            "only": list(self.only),
            "sources": dict(self.sources),
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Request:
        """Rebuild a request from :meth:`to_json`."""
        return cls(
            table_name=plain["table"],
            model=plain["model"],
            stands_for=plain["stands_for"],
            samples=plain["samples"],
            only=tuple(plain["only"]),
            sources=tuple(plain["sources"].items()),
            seed=plain["seed"],
        )

    def _check_names(self, option: str, names: Sequence[str]) -> None:
        tasks = [data.task for data in self.table.data if not data.missing]
        for name in names:
            if name not in tasks:
                raise InputError(
                    f"{option} {name!r} is not a data set of table {self.table_name}; there are "
                    f"{', '.join(tasks)}"
                )
        if len(set(names)) < len(names):
            raise InputError(f"{option} names a data set twice: {', '.join(names)}")


def read_sources(entries: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read ``NAME=DIRECTORY`` entries.

    Raises
    ------
    InputError
        For any other form.
    """
    sources = []
    for entry in entries:
        name, equals, directory = entry.partition("=")
        if not equals or not name or not directory:
            raise InputError(f"--data {entry!r} is not NAME=DIRECTORY, such as pope=copies/pope")
        sources.append((name, str(Path(directory).expanduser())))
    return tuple(sources)
