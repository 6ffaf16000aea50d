"""``vlmflow app``: a page on which a model is asked, explained and truncated."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.terminal import (
    check_range,
    complain,
    errors_in_one_line,
    printable,
    quiet_libraries,
)
from vlmflow.errors import InputError

PORT, LAST_PORT = 7860, 65535


@app.command(name="app")
def serve(
    model: options.Model = MODEL,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; beyond this machine (0.0.0.0) a token is asked for."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = PORT,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Recompute layers instead of keeping them.")
    ] = False,
) -> None:
    """Open a page to ask the model about pictures, see what answers draw on, and remove tokens.

    Prints the address, serves it until Ctrl-C, and writes no file. Needs the extra [app].
    """
    with errors_in_one_line("stopped"):
        from vlmflow.lvlm.model_names import check_model_name

        check_range("--port", port, 0)
        if port > LAST_PORT:
            raise InputError(f"--port {port} is out of range; give a number from 0 to {LAST_PORT}")
        check_model_name(model)
        try:
            from vlmflow.app.engine import ModelChoice
            from vlmflow.app.limits import Limits
            from vlmflow.app.run import run_app
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise InputError(
                f"the app needs {error.name}, which is not installed; pip install 'vlmflow[app]'"
            ) from error
        choice = ModelChoice(model, device, dtype and dtype.value, revision, low_memory)
        run_app(choice, host, port, limits=Limits(), said=_say, prepare=quiet_libraries)


def _say(address: str) -> None:
    typer.echo(f"vlmflow app: open {printable(address)} (Ctrl-C ends it)")
    if "?token=" in address:
        complain("whoever has this address can use the app and see what it is asked: it listens "
                 "beyond this machine, without encryption")  # fmt: skip
