"""Where a study keeps what it measures: one SQLite file that survives whatever ends the run."""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from vlmflow.errors import DamagedStore, InputError
from vlmflow.studies.rescue import damage, make_tables, readable_rows, rescue
from vlmflow.studies.store_kind import RECORD, StoreKind, checksum, connect

_Row = TypeVar("_Row")


class Store:
    """A study's directory, opened for reading.

    A row that is not what was written counts as lost. Only :func:`writing` makes the file where it
    is missing, and puts a damaged one right (``write``).

    Raises
    ------
    InputError
        If there is no such study, another version of vlmflow wrote it, or its file is damaged or
        cannot be used. Every method raises it where that shows later.
    """

    def __init__(self, directory: Path, kind: StoreKind, *, write: bool = False) -> None:
        self.directory, self.kind, self.path = directory, kind, directory / kind.file
        self._writes = write
        if not write and not self.path.is_file():
            raise InputError(
                f"directory {str(directory)!r} holds no study; {kind.command!r} makes one"
            )
        with self._in_words():
            self._base = connect(self.path, create=write)
        try:
            with self._in_words():
                self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):  # a full disk has been told already
            self._base.close()

    def read(self, name: str) -> Any:
        """Return what :meth:`write` put under a name, or None."""
        for _, value in self._select(RECORD, [name]):
            return json.loads(value)
        return None

    def write(self, name: str, value: Any) -> None:
        """Put something JSON can hold under a name."""
        with self._in_words(), self._base:
            self._insert(RECORD, (name, json.dumps(value)))

    def add(self, *rows: Any) -> None:
        """Commit rows of any tables: all of them or none."""
        if not rows:
            return
        with self._in_words(), self._base:
            for row in rows:
                self._insert(self._table(type(row)), astuple(row))

    def get(self, kind: type[_Row], ids: Iterable[str]) -> dict[str, _Row]:
        """Return rows by their ids; those that are not there are left out."""
        return {row[0]: kind(*row) for row in self._select(self._table(kind), list(ids))}

    def changed(self, rows: Sequence[Any]) -> list[Any]:
        """Return those of some rows of one table that are not there, or are others there."""
        stored = self.get(type(rows[0]), [row.id for row in rows])
        return [row for row in rows if stored.get(row.id) != row]

    def get_all(self, kind: type[_Row], ids: Iterable[str]) -> dict[str, _Row]:
        """Return rows by their ids, each of which has to be there."""
        wanted = list(dict.fromkeys(ids))
        rows = self.get(kind, wanted)
        lost = len(wanted) - len(rows)
        if lost:
            raise self.damaged(f"{lost} of {len(wanted)} rows of {self._table(kind)!r} are lost")
        return rows

    def record(self) -> dict[str, Any]:
        """Return what a finished study wrote under "study".

        Raises
        ------
        InputError
            If the study is not finished.
        """
        record: dict[str, Any] | None = self.read("study")
        if record is None:
            raise InputError(
                f"the study in {str(self.directory)!r} is not finished; run the same "
                f"{self.kind.command!r} again to go on with it"
            )
        return record

    def damaged(self, reason: str) -> InputError:
        """Say what is damaged, and what can be saved."""
        rows = 0
        with suppress(sqlite3.Error):
            rows = sum(map(len, readable_rows(self.path, self.kind).values()))
        if not rows:
            return InputError(
                f"{str(self.path)!r} is damaged ({reason}) and nothing in it can be read; remove "
                f"the file and run the same {self.kind.command!r} again"
            )
        return InputError(
            f"{str(self.path)!r} is damaged ({reason}); {rows} of its rows can be read: the same "
            f"{self.kind.command!r} keeps them and measures what is lost again"
        )

    def _open(self) -> None:
        reason = damage(self._base) if self._writes else None
        if reason is None and self._tables():
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            if version != self.kind.format:
                raise InputError(
                    f"the study in {str(self.directory)!r} has format {version}, but this vlmflow "
                    f"reads and writes format {self.kind.format}; run it again in another directory"
                )
            reason = self._other_tables()
        if self._writes:
            if reason is not None:
                self._put_right(reason)
            make_tables(self._base, self.kind)
        elif reason is not None:
            raise self.damaged(reason)

    def _put_right(self, reason: str) -> None:
        self._base.close()
        try:
            rows, kept = rescue(self.path, self.kind)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        if not rows:
            raise self.damaged(reason)
        warnings.warn(
            f"{str(self.path)!r} was damaged ({reason}); {rows} rows were saved, what is lost is "
            f"measured again, and {str(kept)!r} is the damaged file",
            DamagedStore,
            stacklevel=2,
        )
        self._base = connect(self.path)

    def _tables(self) -> dict[str, list[str]]:
        """Return the tables that are there, and their columns."""
        names = self._base.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: [column[1] for column in self._base.execute(f'PRAGMA table_info("{name}")')]
            for (name,) in names
        }

    def _other_tables(self) -> str | None:
        """Say which table is not there, or not as it was made."""
        tables = self._tables()
        for table, declared in self.kind.columns().items():
            if table not in tables:
                return f"table {table!r} is missing"
            if tables[table] != [text.split()[0] for text in declared]:
                return f"table {table!r} has other columns"
        return None

    def _table(self, kind: type) -> str:
        return next(table for table, row in self.kind.tables.items() if row is kind)

    def _insert(self, table: str, row: tuple[Any, ...]) -> None:
        marks = ", ".join("?" * (len(row) + 1))
        self._base.execute(
            f"INSERT OR REPLACE INTO {table} VALUES ({marks})", (*row, checksum(row))
        )

    def _select(self, table: str, keys: list[str]) -> Iterator[tuple[Any, ...]]:
        column = self.kind.columns()[table][0].split()[0]
        for start in range(0, len(keys), 500):  # SQLite takes so many parameters and no more
            part = keys[start : start + 500]
            marks = ", ".join("?" * len(part))
            with self._in_words():
                rows = self._base.execute(
                    f"SELECT * FROM {table} WHERE {column} IN ({marks})", part
                ).fetchall()
            for *values, written in rows:
                if written == checksum(tuple(values)):
                    yield tuple(values)
                elif not self._writes:  # who writes measures it again
                    raise self.damaged(f"a row of {table!r} is not what was written")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Say in one sentence what SQLite cannot do; its other errors are faults of ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._unusable(str(error)) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            raise self.damaged(str(error)) from error
        except UnicodeDecodeError as error:  # of a message that quotes what is damaged
            raise self.damaged("its list of tables is not text") from error

    def _unusable(self, reason: str) -> InputError:
        return InputError(
            f"{str(self.path)!r} cannot be {'written' if self._writes else 'read'} ({reason}); "
            "what it holds is kept: free space on the disk, allow access, or choose another "
            f"directory, and give the same {self.kind.command!r} again"
        )


@contextmanager
def writing(directory: Path, kind: StoreKind) -> Iterator[Store]:
    """Open a study's directory as its only writer, and make it where it is missing.

    The lock is the operating system's: it goes with the process, however that ends.

    Raises
    ------
    InputError
        If another process writes there, or the directory cannot be used.
    """
    lock = FileLock(directory / f"{kind.name}.lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another process is running the study in {str(directory)!r}; wait for it, or choose "
            "another directory"
        ) from error
    except OSError as error:
        raise InputError(
            f"directory {str(directory)!r} cannot hold a study ({error.strerror or error}); choose "
            "another"
        ) from error
    try:
        store = Store(directory, kind, write=True)
        try:
            yield store
        finally:
            store.close()
    finally:
        lock.release()
