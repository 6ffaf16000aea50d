"""What can still be read of a damaged store."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from vlmflow.studies.store_kind import StoreKind, checksum, connect

_BYTES_PER_ROW = 8
"""A file has had at most so many rows: theirs are more than ten times as long, but rows that are
replaced leave their numbers unused."""


def damage(base: sqlite3.Connection) -> str | None:
    """Say what is wrong with a file's pages, or None. A file that cannot be opened raises."""
    try:
        (verdict,) = base.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    except UnicodeDecodeError:  # of a message that quotes what is damaged
        return "its list of tables is not text"
    return None if verdict == "ok" else " ".join(verdict.replace("***", "").split())


def readable_rows(path: Path, kind: StoreKind) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row, with its checksum, that is as it was written."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    with closing(connect(path)) as base:
        base.execute("PRAGMA query_only = ON")
        base.execute("PRAGMA writable_schema = ON")  # reads a file that is cut off, too
        for table, declared in kind.columns().items():
            names = ", ".join(text.split()[0] for text in declared)
            rows[table] = []
            # One by one: a page that is lost must not take the rows of others with it.
            for number in range(1, _last_row(base, table, path) + 1):
                with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
                    row = base.execute(
                        f"SELECT {names} FROM {table} WHERE rowid = ?", (number,)
                    ).fetchone()
                    if row is not None and row[-1] == checksum(row[:-1]):
                        rows[table].append(row)
    return rows


def rescue(path: Path, kind: StoreKind) -> tuple[int, Path]:
    """Put what can be read into a new file, and keep the damaged one under another name.

    Returns the number of rows, and that name. Where no row can be read, nothing is changed.
    """
    rows = readable_rows(path, kind)
    count = sum(map(len, rows.values()))
    kept = _free_name(path)
    if not count:
        return 0, kept
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    try:
        with closing(connect(new, create=True)) as base, base:
            make_tables(base, kind)
            for table, found in rows.items():
                marks = ", ".join("?" * len(kind.columns()[table]))
                base.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", found)
        shutil.copy2(path, kept)
        # A journal belongs to the pages of the old file.
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return count, kept


def make_tables(base: sqlite3.Connection, kind: StoreKind) -> None:
    """Make the tables that are missing, all or none."""
    tables = [
        f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(declared)})"
        for table, declared in kind.columns().items()
    ]
    base.executescript(
        "; ".join(["BEGIN", f"PRAGMA user_version = {kind.format}", *tables, "COMMIT"])
    )


def _last_row(base: sqlite3.Connection, table: str, path: Path) -> int:
    most = path.stat().st_size // _BYTES_PER_ROW
    try:
        last = int(base.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0)
    except (sqlite3.OperationalError, UnicodeDecodeError):  # no such table any more
        return 0
    except sqlite3.DatabaseError:
        return most
    return min(last, most)  # the number may be what is damaged


def _free_name(path: Path) -> Path:
    number, kept = 2, path.with_suffix(".damaged.sqlite")
    while kept.exists():
        kept = path.with_suffix(f".damaged-{number}.sqlite")
        number += 1
    return kept
