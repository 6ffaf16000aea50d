"""Options that several commands share, with one help text each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmflow.cli.app import Dtype
from vlmflow.errors import InputError
from vlmflow.files import as_path
from vlmflow.parameters import split_outside_brackets

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmflow.lvlm.batch_size import Batch
    from vlmflow.lvlm.video_files import VideoFile
    from vlmflow.truncation.ways import Way


class Of(str, Enum):
    """The text that the words of a target belong to."""

    ANSWER = "answer"
    QUESTION = "question"
    PROMPT = "prompt"


def path(text: str | Path) -> Path:
    """Read a path, as Typer parses values: what it refuses is said with the option's name."""
    try:
        return as_path(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def at_once(text: str) -> str:
    """Read a batch size, as Typer parses values."""
    if text != "auto" and not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on.")
    return text


def as_batch(text: str) -> Batch:
    """Return what ``--batch`` says."""
    return "auto" if text == "auto" else int(text)


def split_signals(signals: str) -> tuple[str, ...]:
    """Separate names at commas outside brackets."""
    names = tuple(name.strip() for name in split_outside_brackets(signals) if name.strip())
    if not names:
        raise InputError(f"--signals {signals!r} names no signal; for example --signals saliency")
    return names


def open_visuals(paths: Sequence[Path], frames: int | None) -> list[Image | VideoFile]:
    """Open pictures; of video files find out what they hold, so that a bad one is said at once."""
    from vlmflow.lvlm.video_files import VideoFile, open_visual

    visuals = [open_visual(path, frames) for path in paths]
    if frames is not None and not any(isinstance(visual, VideoFile) for visual in visuals):
        raise InputError(f"--frames {frames} is for video files, but only pictures are given")
    return visuals


def as_target(words: str | None, tokens: str | None) -> str | range | None:
    """Read what --target and --target-tokens name: a text, a run of numbers, or nothing."""
    if tokens is None:
        return words
    if words is not None:
        raise InputError("--target and --target-tokens both name what is explained; give one")
    numbers = re.fullmatch(r"([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?", tokens)
    if numbers is None or (numbers[2] and int(numbers[2]) < int(numbers[1])):
        raise InputError(
            f"--target-tokens {tokens!r} is neither a token's number nor a run of them; for "
            "example 3, or 3-5"
        )
    return range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)


def one_way(truncate: str | None, preset: str | None, policy_file: Path | None) -> Way | None:
    """Read the one way of removing image tokens that is given, for a number of decoder layers."""
    from vlmflow.truncation import ways

    return ways.one_way(truncate, preset, policy_file, "--truncate, --preset and --policy")


MODEL_HELP = "A bundled model, a directory, or a name on the Hugging Face hub."

Picture = Annotated[
    Path, typer.Argument(metavar="IMAGE", parser=path, help="The picture, or a video file.")
]
Question = Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")]
MorePictures = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="IMAGE",
        parser=path,
        help="A further picture or video for the same question; repeatable.",
    ),
]
VideoFrames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        metavar="N",
        help="Take N frames of each video, evenly, instead of those that the model's processor "
        "chooses.",
        show_default=False,
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
SamplesAtOnce = Annotated[
    str,
    typer.Option(
        "--batch",
        metavar="auto|N",
        parser=at_once,
        help="Samples at once; auto: as many as memory holds.",
    ),
]
PicturesAtOnce = Annotated[
    str,
    typer.Option(
        "--batch",
        metavar="auto|N",
        parser=at_once,
        help="Pictures to a forward pass; auto: as many as memory holds.",
    ),
]
TargetWords = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Explain these words instead of the whole answer: their text, as it stands there.",
        show_default=False,
    ),
]
TargetOf = Annotated[
    Of,
    typer.Option(
        "--of",
        help="What these words belong to: the answer, the question (all of it without --target), "
        "or any text of the prompt after the picture.",
    ),
]
TargetTokens = Annotated[
    str | None,
    typer.Option(
        "--target-tokens",
        metavar="FIRST[-LAST]",
        help="Explain these tokens instead, by their numbers from 1: 3 or 3-5.",
        show_default=False,
    ),
]
TruncateSettings = Annotated[
    str | None,
    typer.Option(
        "--truncate",
        metavar="SETTINGS",
        help="Settings such as layer=6,keep=0 or layer=2:8,keep=0.5:16,rank_by=diversity "
        "(also remainder, positions, within, seed).",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="A published method: fastv, vtw, ..."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", parser=path, help="What 'vlmflow certify' wrote."),
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer to generate.")]
Report = Annotated[
    Path,
    typer.Option(metavar="DIR", parser=path, help="Directory for the report and the numbers."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
