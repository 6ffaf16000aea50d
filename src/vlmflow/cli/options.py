"""Options that several commands share, with one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmflow.cli.app import Dtype
from vlmflow.errors import InputError
from vlmflow.files import as_path
from vlmflow.parameters import split_outside_brackets


def path(text: str | Path) -> Path:
    """Read a path, as Typer parses values: what it refuses is said with the option's name."""
    try:
        return as_path(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def split_signals(signals: str) -> tuple[str, ...]:
    """Separate names at commas outside brackets."""
    names = tuple(name.strip() for name in split_outside_brackets(signals) if name.strip())
    if not names:
        raise InputError(f"--signals {signals!r} names no signal; for example --signals saliency")
    return names


MODEL_HELP = "A bundled model, a directory, or a name on the Hugging Face hub."

Picture = Annotated[Path, typer.Argument(metavar="IMAGE", parser=path, help="The picture.")]
Question = Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")]
MorePictures = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="IMAGE",
        parser=path,
        help="A further picture for the same question; repeatable.",
    ),
]
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
Device = Annotated[
    str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.", show_default="auto")
]
NumberFormat = Annotated[
    Dtype | None, typer.Option(help="Number format.", show_default="the model's own")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer to generate.")]
Report = Annotated[
    Path,
    typer.Option(metavar="DIR", parser=path, help="Directory for the report and the numbers."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
