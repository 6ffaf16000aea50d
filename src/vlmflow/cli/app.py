"""The command line's root: the application that commands add themselves to."""

from __future__ import annotations

import signal
import sys
from enum import Enum
from typing import Annotated

import typer

from vlmflow import __version__

MODEL = "scenes-llava"

app = typer.Typer(
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
    # A terminal that cannot show a character gets its escape, not a trace.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Ending a run from outside cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A terminal that closes, too (Windows has no such signal), unless nohup said to go on.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    app()


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
