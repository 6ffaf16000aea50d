"""The command line's root: the application that commands add themselves to."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from enum import Enum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlmflow import __version__
from vlmflow.cli.terminal import errors_in_one_line

MODEL = "scenes-llava"


class OneLineEndings(TyperGroup):
    """All commands; whatever ends one early ends it in one line, usage errors as well."""

    def main(self, *arguments: Any, **_options: Any) -> Any:
        """Run a command and exit; called as every command line of Typer is."""
        code: object = None
        try:
            with errors_in_one_line():
                code = super().main(*arguments, **{**_options, "standalone_mode": False})
                if sys.stdout is not None:
                    sys.stdout.flush()
        except typer.Exit as ending:
            code = ending.exit_code
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineEndings,
    help="See which tokens the answer of a large vision-language model draws on, layer by layer.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dtype(str, Enum):
    """Number format the model runs in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def main() -> None:
    """Run the command line; the entry point of `vlmflow` and `python -m vlmflow`."""
    try:
        # A terminal that cannot show a character gets its escape, not a trace.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        sys.unraisablehook = _deliver_interrupt
        # Ending a run from outside cleans up as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        # A terminal that closes, too (Windows has no such signal), unless nohup said to go on.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
        app()
    except KeyboardInterrupt:  # while the commands were put together
        sys.exit(130)
    finally:
        # Done or cleaned up: what comes now would only meet libraries on their way out.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _give_up_on_full_streams()
        # After a Ctrl-C inside exec() or eval(), `python -m` kills itself instead of exiting with
        # our code, unless another call comes last.
        exec("")


def _give_up_on_full_streams() -> None:
    """Make sure that Python does not try again at its end to write what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt() -> None:
    thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and thread is not None:
        signal.pthread_kill(thread, signal.SIGINT)  # wakes it, too
    else:
        signal.raise_signal(signal.SIGINT)


def _deliver_interrupt(unraisable: Any) -> None:
    """Pass on a Ctrl-C that came inside a destructor, where Python would drop it with a trace."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # A little later, when the destructor is left.
        again = threading.Timer(0.01, _interrupt)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlmflow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
