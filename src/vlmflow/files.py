"""Write the files of one result all together or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from vlmflow.errors import InputError

_PREFIX, _LOCK = ".vlmflow-", ".lock"
"""Names of a directory that is not finished, and of the lock beside it."""

_WAY_OUT = "choose a path you can write to"


def as_path(path: str | os.PathLike[str]) -> Path:
    """Read a path that a user gives.

    Raises InputError for an empty one, which would be the current directory, and for one that no
    file can have.
    """
    text = os.fspath(path)
    if not text:
        raise InputError("the path is empty; write '.' for the current directory")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InputError(
            f"path {text!r} holds {text[error.start]!r}, half of a surrogate pair: no file can be "
            "called so"
        ) from error
    if "\0" in text:
        raise InputError(f"path {text!r} holds a NUL character: no file can be called so")
    return Path(text)


def write_files(directory: str | os.PathLike[str], contents: Mapping[str, bytes]) -> Path:
    """Write files of these names into a directory, all of them or none, and return its path.

    The directory is created with its parents where missing, and files of these names that are in
    it are replaced. Raises InputError if it cannot be written; what this call created is removed
    again.
    """
    folder = as_path(directory)
    with staged(folder, tuple(contents)) as staging:
        try:
            for name, content in contents.items():
                (staging / name).write_bytes(content)
        except (OSError, ValueError) as error:
            raise _unwritable(folder, error) from error
    return folder


@contextmanager
def staged(out: Path, files: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty directory whose files are moved to `out` only if the block ends without error.

    Whatever ends the block early, an interrupt included, `out` and its parents are left as they
    were found. Files already in `out` are replaced where a new one has the same name and kept
    otherwise. Entering the block is also the test that `out` can be written.

    `out` is created, with its parents, where it does not exist; the given directory is on the same
    file system. `files` are names that will be written, to be refused beforehand where a directory
    is in their way. Raises InputError if `out` is a file or cannot be written.
    """
    made: list[Path] = []
    staging: Path | None = None
    lock: BaseFileLock | None = None
    moved = False
    try:
        try:
            _check(out, files)
            with _uninterrupted():
                for parent in reversed(out.parents):
                    if not parent.exists():
                        parent.mkdir()
                        made.append(parent)
                # Inside `out` where it exists: its parent may be read-only or another file system.
                home = out if out.exists() else out.parent
                _remove_stale(home)
                name = f"{_PREFIX}{secrets.token_hex(6)}"
                lock = FileLock(home / f"{name}{_LOCK}")
                lock.acquire()
                (home / name).mkdir()
                staging = home / name
        except (OSError, ValueError) as error:
            raise _unwritable(out, error) from error
        try:
            yield staging
        except InputError as error:
            if str(staging) not in str(error):
                raise
            # Whoever wrote there knows the directory by a name that is gone.
            raise InputError(str(error).replace(str(staging), str(out))) from error
        try:
            with _uninterrupted():
                _move(staging, out)
                moved = True
        except OSError as error:
            raise _unwritable(out, error) from error
    finally:
        with _uninterrupted():
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            if lock is not None:
                _drop(lock)
            if not moved:
                for parent in reversed(made):
                    with suppress(OSError):  # another process has put a file into it
                        parent.rmdir()


def _remove_stale(home: Path) -> None:
    """Remove what processes have left that were killed: nobody holds its lock any more."""
    for path in home.glob(f"{_PREFIX}*{_LOCK}"):
        lock = FileLock(path)
        with suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            _drop(lock)


def _drop(lock: BaseFileLock) -> None:
    lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink()


def _check(out: Path, files: Sequence[str]) -> None:
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"output directory {str(out)!r} is not a directory; {_WAY_OUT}")
    for name in files:
        if (out / name).is_dir():
            raise InputError(
                f"output file {str(out / name)!r} is a directory; remove it or {_WAY_OUT}"
            )


def _move(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    for source in sorted(staging.rglob("*")):
        target = out / source.relative_to(staging)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            source.replace(target)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold what ends a process off for a few system calls that belong together, and pass it on.

    Half of the renames would leave old and new files mixed, half of the cleaning up a directory.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))
        if number is not None and callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _unwritable(out: Path, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"output directory {str(out)!r} cannot be written ({reason}); {_WAY_OUT}")
