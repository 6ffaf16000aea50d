"""What the store of a kind of study holds, and how its file is opened."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

RECORD = "study"
"""Table of what concerns the whole study: names, and values as JSON."""

_TYPES = {
    "str": "TEXT NOT NULL",
    "str | None": "TEXT",
    "float": "REAL NOT NULL",
    "float | None": "REAL",
    "bytes | None": "BLOB",
}


@dataclass(frozen=True)
class StoreKind:
    """What the store of one kind of study is called and holds."""

    name: str  # Its file is NAME.sqlite
    command: str  # What makes and continues such a study
    format: int  # Version of the file, kept in SQLite's ``user_version``
    tables: Mapping[str, type]  # Dataclasses of the tables' rows; the first field is ``id``

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}.sqlite"

    def columns(self) -> dict[str, list[str]]:
        """Return the columns of every table as SQL declares them; the last is the row's hash."""
        declared = {RECORD: ["name TEXT PRIMARY KEY", "value TEXT NOT NULL"]}
        for table, row in self.tables.items():
            rest = [f"{field.name} {_TYPES[str(field.type)]}" for field in fields(row)[1:]]
            declared[table] = ["id TEXT PRIMARY KEY", *rest]
        return {table: [*texts, "checksum TEXT NOT NULL"] for table, texts in declared.items()}


def checksum(values: tuple[Any, ...]) -> str:
    """Hash what a row holds: SQLite itself does not notice a changed byte."""
    return hashlib.sha256(repr(values).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open a file of SQLite; for reading only where it is write-protected.

    The journal is not a write-ahead log: no second file has to be copied along with a finished
    study, and it works on network file systems.
    """
    mode = "rwc" if create else "rw"
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30)
    # What is no text any more must not stop the reading of other rows.
    base.text_factory = lambda text: text.decode("utf-8", "backslashreplace")
    return base
