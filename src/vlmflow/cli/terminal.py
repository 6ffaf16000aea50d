"""What is shown at a terminal: errors in one line, progress, harmless text."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer

from vlmflow.errors import InputError, Note, VlmflowError, is_out_of_memory
from vlmflow.escape_invisible import is_unseen
from vlmflow.lvlm.tokens import refuse_surrogates
from vlmflow.parameters import LARGEST

CONTINUES = "interrupted; the same command continues from here"
"""What Ctrl-C says of work that is stored as it comes."""

UNFINISHED = "interrupted; no file is half-written"
"""What it says of all other work."""

FIRST_LINE, LINES_APART = 10.0, 30.0
"""Where nobody watches a bar: seconds of counted work until the first line, and between lines."""

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Base of what Typer raises for a command line that it cannot read."""


def check_text(what: str, text: str) -> None:
    """Refuse an empty text, one that is not Unicode and one that holds the image placeholder."""
    refuse_surrogates(text, what)
    if not text.strip():
        raise InputError(f"{what} is empty; write something between the quotation marks")
    if "<image>" in text:
        raise InputError(
            f"{what} contains the image placeholder '<image>'; leave it out, the picture is put "
            "in for you"
        )


def check_range(option: str, value: float, least: int) -> None:
    """Refuse a number below ``least``, one that nothing can count to, infinity and NaN."""
    if not least <= value <= LARGEST:  # also refuses NaN
        raise InputError(
            f"{option} {value} is out of range; give a number from {least} to {LARGEST:,}"
        )


@contextmanager
def errors_in_one_line(interrupted: str = UNFINISHED) -> Iterator[None]:
    """Bad input ends in one line and exit code 2, Ctrl-C in 130; only bugs show a trace."""
    try:
        with _interrupts_as_such():
            yield
    except VlmflowError as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        complain(interrupted)
        raise typer.Exit(130) from None
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `vlmflow` alone
            typer.echo(str(error), err=True)
        else:
            complain(_usage(error))
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise typer.Exit(1) from None  # who reads the output has seen enough
        what = "the output cannot be written"
        if error.filename is not None:
            what = f"{str(error.filename)!r} cannot be read or written"
        complain(f"{what} ({error.strerror or error})")
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain("out of memory; try --low-memory, --whole, --dtype bfloat16 or a smaller model")
        raise typer.Exit(1) from None


@contextmanager
def _interrupts_as_such() -> Iterator[None]:
    """Raise KeyboardInterrupt where it came inside something that made another error of it.

    Python does in the bodies of classes, and libraries do around what they import.
    """
    try:
        yield
    except Exception as error:
        origins: list[BaseException] = []
        origin: BaseException | None = error
        while origin is not None and origin not in origins:  # an error may be its own cause
            origins.append(origin)
            context = None if origin.__suppress_context__ else origin.__context__
            origin = origin.__cause__ or context
        if any(isinstance(origin, KeyboardInterrupt) for origin in origins):
            raise KeyboardInterrupt from error
        raise


def _usage(error: Any) -> str:
    """Say in one sentence what is wrong with a command line, and where to look."""
    message = error.format_message().strip().rstrip(".").replace("Value error, ", "")
    # Some versions of Typer say what is expected, but not what was given.
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    given = repr(details[0]["input"]) if details and "input" in details[0] else ""
    if given and given not in message:
        message = f"{message.partition(', unable to parse')[0]}, but it is {given}"
    command = error.ctx.command_path if error.ctx is not None else "vlmflow"
    end = " See" if message.endswith("?") else "; see"
    return f"{message[:1].lower()}{message[1:]}{end} '{command} --help'"


def complain(message: str) -> None:
    """Put one line on stderr."""
    with suppress(OSError):  # nobody can be told
        typer.echo(f"vlmflow: {printable(' '.join(message.split()))}", err=True)


def printable(text: str) -> str:
    """Escape what could steer a terminal or is not seen: controls, newlines, reversed text."""
    return "".join(
        char
        if char.isprintable() and not is_unseen(char)
        else char.encode("unicode_escape").decode()
        for char in text
    )


def columns(rows: Sequence[Sequence[str]], *, right: bool = False, gap: int = 2) -> list[str]:
    """Pad texts to columns as wide as their widest cell; ``right``: all but the first end flush."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def pace_words(count: int, seconds: float) -> str:
    """Say how fast so many samples went: ``"3.2/s"``, or ``"21 s each"``."""
    rate = count / max(seconds, 1e-3)
    return f"{rate:.1f}/s" if rate >= 1 or not count else f"{1 / rate:.0f} s each"


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl+C back until a block ends: torch, interrupted while it is imported, aborts."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])


def quiet_libraries() -> None:
    """Keep other libraries' notices and bars off the terminal; ours say what is going on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Note)  # ours, see notes
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    with interrupts_held():
        import torch  # noqa: F401 (every command that comes here needs it)
        from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def notes() -> Iterator[None]:
    """Print the package's own warnings on stderr, in a line each."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        typer.echo(f"note: {printable(str(message))}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        warnings.showwarning = show
        yield


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Show what is being done, on stderr: `show(what, done, total)`.

    A person sees a bar; a file or a pipe gets a line now and then.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int = 0, total: int | None = None) -> None:
            bar.update(task, description=printable(what), completed=done, total=total, refresh=True)

        yield show


def _lines() -> Callable[..., None]:
    due, counting = time.monotonic() + LINES_APART, False

    def show(what: str, _done: int = 0, total: int | None = None) -> None:
        nonlocal due, counting
        now = time.monotonic()
        if total is not None and not counting:
            due, counting = min(due, now + FIRST_LINE), True
        if now >= due:
            typer.echo(printable(what), err=True)
            due = now + LINES_APART

    return show
