"""``vlmflow sample``: pictures and questions to try everything on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vlmflow.cli import options
from vlmflow.cli.app import app
from vlmflow.cli.terminal import errors_in_one_line, printable


@app.command()
def sample(
    out: Annotated[
        Path, typer.Option(metavar="DIR", parser=options.path, help="Directory for the files.")
    ] = Path("vlmflow-samples"),
) -> None:
    """Write sample pictures, and a file of questions about them.

    picture.png, left.png and right.png; and questions.jsonl, a task for 'vlmflow study --task'.
    """
    with errors_in_one_line():
        from vlmflow.scenes.sample_files import write_samples

        picture, question = write_samples(out)
        command = shlex.join(["vlmflow", "explain", str(picture), question])
        typer.echo(f"written to {printable(str(out))}; for example: {printable(command)}")
