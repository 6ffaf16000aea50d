"""Where a study's answers are kept: one SQLite file, one row per sample and arm."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlmflow.errors import InputError

FILE, LOCK = "study.sqlite", "study.lock"

FORMAT = 2
"""Version of the file, kept in SQLite's ``user_version``. 0, never released, named results by other
hashes."""

_TABLES = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE IF NOT EXISTS study (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sample (
    id TEXT PRIMARY KEY, split TEXT NOT NULL, key TEXT NOT NULL, question TEXT NOT NULL,
    refs TEXT NOT NULL, choices TEXT NOT NULL, part TEXT NOT NULL, cluster TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS result (
    id TEXT PRIMARY KEY, answer TEXT, failure TEXT, image_tokens REAL, flops REAL,
    flops_untouched REAL, formula_share REAL
);
CREATE TABLE IF NOT EXISTS prefill (id TEXT PRIMARY KEY, seconds REAL NOT NULL);
"""


@dataclass(frozen=True)
class StoredSample:
    """A sample without its pictures."""

    id: str  # Hash of its content, pictures included
    # As in :class:`vlmflow.tasks.base.TaskSample`; ``refs`` and ``choices`` as JSON lists
    split: str
    key: str
    question: str
    refs: str
    choices: str
    part: str
    cluster: str


@dataclass(frozen=True)
class StoredResult:
    """What one arm made of one sample."""

    id: str  # Hash of everything that can change it
    answer: str | None  # None where it failed
    failure: str | None = None  # Why it failed
    image_tokens: float | None = None  # Image tokens that an average layer sees
    # Operations of this prefill, and of the untouched prompt's; None where the model's
    # configuration does not tell (:class:`vlmflow.truncation.flops.PrefillCost`)
    flops: float | None = None
    flops_untouched: float | None = None
    # FastV's formula (:func:`vlmflow.truncation.flops.formula_share`)
    formula_share: float | None = None


class Store:
    """A study's directory, opened for reading.

    Only :func:`writing` makes the directory and the file where they are missing (``create``).

    Raises
    ------
    InputError
        If there is no study, another version of vlmflow wrote it, or the directory cannot be
        used.
    """

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        self.directory = directory
        if not create and not (directory / FILE).is_file():
            raise InputError(
                f"directory {str(directory)!r} holds no study; 'vlmflow study' makes one"
            )
        try:
            if create:
                directory.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(directory / FILE, timeout=30)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._check_format()
            self._base.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"directory {str(directory)!r} cannot hold a study ({reason}); choose another"
            ) from error

    def _check_format(self) -> None:
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        (tables,) = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and version != FORMAT:
            self._base.close()
            raise InputError(
                f"the study in {str(self.directory)!r} has format {version}, but this vlmflow "
                f"reads and writes format {FORMAT}; run it again in another directory"
            )

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def read(self, name: str) -> Any:
        """Return what :meth:`write` put under a name, or None."""
        row = self._base.execute("SELECT value FROM study WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def write(self, name: str, value: Any) -> None:
        """Put something JSON can hold under a name."""
        with self._base:
            self._base.execute(
                "INSERT OR REPLACE INTO study VALUES (?, ?)", (name, json.dumps(value))
            )

    def add(self, sample: StoredSample, results: Iterable[StoredResult]) -> None:
        """Commit a sample with some of its results."""
        with self._base:
            self._insert("sample", [sample])
            self._insert("result", list(results))

    def results(self, ids: Iterable[str]) -> dict[str, StoredResult]:
        """Return results by their ids; those that are not there are left out."""
        return {row[0]: StoredResult(*row) for row in self._select("result", list(ids))}

    def samples(self, ids: Iterable[str]) -> dict[str, StoredSample]:
        """Return samples by their ids; those that are not there are left out."""
        return {row[0]: StoredSample(*row) for row in self._select("sample", list(ids))}

    def add_seconds(self, name: str, seconds: float) -> None:
        """Commit how long one prefill took."""
        with self._base:
            self._base.execute("INSERT OR REPLACE INTO prefill VALUES (?, ?)", (name, seconds))

    def seconds(self, ids: Iterable[str]) -> dict[str, float]:
        """Return measured prefills by their ids."""
        return {row[0]: row[1] for row in self._select("prefill", list(ids))}

    def _insert(self, table: str, rows: list[Any]) -> None:
        if rows:
            marks = ", ".join("?" * len(fields(rows[0])))
            self._base.executemany(
                f"INSERT OR REPLACE INTO {table} VALUES ({marks})", [astuple(row) for row in rows]
            )

    def _select(self, table: str, ids: list[str]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), 500):  # SQLite takes so many parameters and no more
            part = ids[start : start + 500]
            marks = ", ".join("?" * len(part))
            yield from self._base.execute(f"SELECT * FROM {table} WHERE id IN ({marks})", part)


@contextmanager
def writing(directory: Path) -> Iterator[Store]:
    """Open a study's directory as its only writer, and make it where it is missing.

    The lock is the operating system's: it goes with the process, however that ends.

    Raises
    ------
    InputError
        If another process writes there, or the directory cannot be used.
    """
    store = Store(directory, create=True)
    lock = FileLock(directory / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"another process is running the study in {str(directory)!r}; wait for it, or "
                "choose another directory"
            ) from error
        yield store
    finally:
        lock.release()
        store.close()
