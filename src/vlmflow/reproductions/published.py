"""What papers print: tables as data, each figure with its source, protocol and known doubts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from vlmflow.errors import InputError


@dataclass(frozen=True)
class PublishedModel:
    """A model of a table."""

    called: str  # By the paper
    hub: str = ""  # Its id on the hub; empty: there is none that runs here
    type: str = ""  # ``model_type`` of its config
    layers: int = 0  # Decoder layers
    image_tokens: int = 0  # Of a typical picture
    missing: str = ""  # Why it does not run here


@dataclass(frozen=True)
class PublishedData:
    """A data set of a table."""

    task: str  # What ``vlmflow tasks`` calls it
    samples: int = 0  # That a full run asks
    # A typical prompt and answer, for estimates before anything is measured
    text_tokens: int = 0
    answer_tokens: int = 0
    pictures: int = 1  # Most pictures in one prompt
    # The paper's own prompt and longest answer, where they are not the task's
    question: str = ""
    max_new_tokens: int | None = None
    missing: str = ""  # Why it does not run here


@dataclass(frozen=True)
class PublishedFigure:
    """One printed number."""

    model: str  # :attr:`PublishedModel.called`
    data: str  # :attr:`PublishedData.task`
    figure: str  # Its kind: ``"accuracy"``, ``"CIDEr"``, ``"insertion"``, ...
    value: float  # As printed
    policy: str = ""  # What is removed, as ``--truncate`` takes it; empty: nothing, or see missing
    signal: str = ""  # Whose map it is about, for insertion and deletion
    untouched: float | None = None  # Of a removal: what the paper has for the untouched model
    doubt: str = ""  # What speaks against the number itself
    missing: str = ""  # Why it does not run here, though its model and data may

    @property
    def is_removal(self) -> bool:
        """Whether image tokens are removed, and there is a change to the untouched model."""
        return self.untouched is not None


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper, or one list of figures."""

    name: str
    title: str
    paper: str
    where: str  # In the paper
    digits: int  # After the point, as printed
    protocol: tuple[str, ...]  # What its authors did
    differences: tuple[str, ...]  # What is done otherwise here
    doubts: tuple[str, ...]  # What speaks against the figures
    left_out: tuple[str, ...]  # What is not in the data
    models: tuple[PublishedModel, ...]
    data: tuple[PublishedData, ...]
    figures: tuple[PublishedFigure, ...]

    @property
    def is_faithfulness(self) -> bool:
        """Whether maps are tested, rather than answers scored."""
        return any(figure.signal for figure in self.figures)

    def data_of(self, task: str) -> PublishedData:
        """Return one of the data sets."""
        return next(data for data in self.data if data.task == task)

    def why_not(self, figure: PublishedFigure) -> str:
        """Say why a figure does not run here whatever the user has; empty where it does."""
        model = next(model for model in self.models if model.called == figure.model)
        return model.missing or self.data_of(figure.data).missing or figure.missing


LEFT_OUT = (
    "VTW's own main table: its figures are not at hand; others' measurements are, see "
    "vtw-by-others",
    "PyramidDrop's main table: its figures are not at hand; its preset is 'pyramiddrop'",
)
"""Tables that one may look for."""


def table_names() -> tuple[str, ...]:
    """List the tables, in order."""
    folder = resources.files("vlmflow.reproductions") / "tables"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir()))


@cache
def published_table(name: str) -> PublishedTable:
    """Read a table.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in table_names():
        raise InputError(f"there is no table {name!r}; there are {', '.join(table_names())}")
    file = resources.files("vlmflow.reproductions") / "tables" / f"{name}.json"
    plain = json.loads(file.read_text("utf-8"))
    rows, models, data = plain.pop("rows"), plain.pop("models"), plain.pop("data")
    lists = {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
    return PublishedTable(
        name=name,
        models=tuple(PublishedModel(**model) for model in models),
        data=tuple(PublishedData(**entry) for entry in data),
        figures=tuple(figure for row in rows for figure in _figures(row)),
        **{**plain, **lists},
    )


def _figures(row: Mapping[str, Any]) -> Iterator[PublishedFigure]:
    """Give the figures of a row: the untouched model's and those of each truncation."""
    shared = {key: value for key, value in row.items() if key not in ("untouched", "truncated")}
    if "untouched" not in row:
        yield PublishedFigure(**shared)
        return
    yield PublishedFigure(**shared, value=row["untouched"])
    for truncated in row["truncated"]:
        yield PublishedFigure(**shared, **truncated, untouched=row["untouched"])
