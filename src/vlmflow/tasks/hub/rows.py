"""Rows of an opened data set, whose errors name the column and the row."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError
from vlmflow.lvlm.chat import PictureSource
from vlmflow.lvlm.images import unread_image


@dataclass(frozen=True)
class Row:
    """One row, not decoded."""

    values: dict[str, Any]  # Values by column; a picture is a ``{"bytes": ..., "path": ...}``
    name: str  # Which row, for messages

    def text(self, column: str) -> str:
        """Return a text."""
        value = self.values[column]
        if not isinstance(value, str):
            raise self._wrong(column, "a text")
        return value

    def optional(self, column: str) -> str:
        """Return a text, empty where the column or the value is missing (or pandas' "nan")."""
        value = self.values.get(column)
        return "" if value is None or value != value or value == "nan" else self.text(column)

    def number(self, column: str) -> int:
        """Return a whole number."""
        value = self.values[column]
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(column, "a whole number")
        return value

    def texts(self, column: str) -> tuple[str, ...]:
        """Return texts: a list of them, of entries with an ``answer``, or one written as text."""
        value = self.values[column]
        if isinstance(value, str) and value.startswith("["):
            try:
                value = ast.literal_eval(value)
            except (SyntaxError, ValueError):
                raise self._wrong(column, "a list of texts") from None
        if isinstance(value, list):
            answers = [item.get("answer") if isinstance(item, dict) else item for item in value]
            texts = tuple(answer for answer in answers if isinstance(answer, str))
            if answers and len(texts) == len(answers):
                return texts
        raise self._wrong(column, "a list of texts")

    def pictures(self, column: str) -> tuple[PictureSource, ...]:
        """Return the pictures of a column; their pixels are decoded when they are used."""
        return tuple(
            unread_image(data, f"the picture in {self.name}") if isinstance(data, bytes) else data
            for data in self._pictures(column)
        )

    def fingerprint(self, column: str) -> str:
        """Return a name for the pictures of a column: equal for equal files."""
        digest = hashlib.sha256()
        for data in self._pictures(column):
            try:
                digest.update(data if isinstance(data, bytes) else data.read_bytes())
            except OSError as error:
                raise InputError(
                    f"the picture {str(data)!r} of {self.name} cannot be read ({error.strerror})"
                ) from error
        return digest.hexdigest()[:20]

    def _pictures(self, column: str) -> list[bytes | Path]:
        """Files as they are stored, or paths to them."""
        value = self.values[column]
        sources: list[bytes | Path] = []
        for item in value if isinstance(value, list) else [value]:
            data = item.get("bytes") or item.get("path") if isinstance(item, dict) else item
            if not data or not isinstance(data, bytes | str):
                raise self._wrong(column, "a picture")
            sources.append(Path(data) if isinstance(data, str) else data)
        if not sources:
            raise self._wrong(column, "a picture")
        return sources

    def _wrong(self, column: str, what: str) -> InputError:
        text = repr(self.values[column])
        short = text if len(text) <= 60 else f"{text[:57]}..."
        return InputError(f"column {column!r} of {self.name} is {short}, not {what}")


@dataclass(frozen=True)
class Rows:
    """A split of a data set."""

    dataset: Any  # In Arrow format: reading a row does not decode its pictures
    name: str  # Which one, for messages

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Row:
        (values,) = self.dataset[number : number + 1].to_pylist()
        return Row(values, f"row {number} of {self.name}")

    def check(self, columns: frozenset[str], task: str) -> None:
        """Refuse a data set that lacks columns."""
        names = self.dataset.column_names
        missing = sorted(columns - set(names))
        if missing:
            raise InputError(
                f"{self.name} has no column {', '.join(map(repr, missing))}, which task {task!r} "
                f"reads; it has {', '.join(map(repr, names))}"
            )

    def column(self, name: str) -> list[Any]:
        """Return all values of one column, reading no other."""
        return list(self.dataset.select_columns([name])[:][name].to_pylist())
