"""The command line: `vlmflow explain IMAGE QUESTION` and `vlmflow demo`.

Everything that can be checked cheaply is checked before the model is loaded, and torch is imported
only once it is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmflow import __version__
from vlmflow.errors import InputError, VlmflowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from vlmflow.flow.result import InformationFlow

MODEL = "scenes-llava"
SIGNALS = "attention,saliency,flow,llava_cam"
REPORT, NUMBERS, ARRAYS, FIGURES = "report.html", "flow.json", "flow.safetensors", "figures"
OUT = Path("vlmflow-report")

app = typer.Typer(
    help="See which tokens the answer of a large vision-language model draws on, layer by layer.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Target(str, Enum):
    """The scalar that is explained."""

    LOGPROB = "logprob"
    LOGIT = "logit"
    MARGIN = "margin"


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


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    model: Annotated[
        str, typer.Option(help="A bundled model, a directory, or a name on the Hugging Face hub.")
    ] = MODEL,
    more_images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", metavar="IMAGE", help="A further picture for the same question; repeatable."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for the report and the numbers.")] = OUT,
    answer: Annotated[
        str | None, typer.Option(help="Explain this answer instead of the model's own.")
    ] = None,
    signals: Annotated[str, typer.Option(help="What to measure, separated by commas.")] = SIGNALS,
    target: Annotated[Target, typer.Option(help="The scalar to explain.")] = Target.LOGPROB,
    per_token: Annotated[
        bool,
        typer.Option(
            "--per-token/--whole", help="Explain every answer token, or only the whole answer."
        ),
    ] = True,
    smooth: Annotated[
        int, typer.Option(help="Average LLaVA-CAM over this many noisy pictures; 0 for none.")
    ] = 0,
    noise: Annotated[
        float, typer.Option(help="Standard deviation of that noise, in normalised pixel values.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of that noise.")] = 0,
    flow_layers: Annotated[
        int | None,
        typer.Option(help="Sum the flow map over this many first layers.", show_default="all"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer to generate.")] = 64,
    device: Annotated[
        str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.", show_default="auto")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format.", show_default="the model's own")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Recompute layers instead of keeping them.")
    ] = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also write PNG and PDF figures.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")
    ] = False,
) -> None:
    """Explain one answer and write the report.

    Writes OUT/report.html, OUT/flow.json and OUT/flow.safetensors, all together or none of them.
    """
    with _errors_in_one_line():
        from vlmflow.lvlm.images import open_image

        _check_text("the question", question)
        if answer is not None:
            _check_text("--answer", answer)
        _check_range("--smooth", smooth, 0)
        _check_range("--noise", noise, 0)
        _check_range("--seed", seed, 0)
        _check_range("--max-new-tokens", max_new_tokens, 1)
        if flow_layers is not None:
            _check_range("--flow-layers", flow_layers, 1)
        flow = _run(
            [open_image(path) for path in (image, *(more_images or ()))],
            question,
            out=out,
            figures=figures,
            load={
                "name": model,
                "device": device,
                "dtype": dtype and dtype.value,
                "revision": revision,
            },
            explain={
                "answer": answer,
                "signals": _split(signals),
                "target": target.value,
                "per_token": per_token,
                "smooth": smooth,
                "noise": noise,
                "seed": seed,
                "flow_layers": flow_layers,
                "max_new_tokens": max_new_tokens,
                "low_memory": low_memory,
            },
        )
    _announce(flow, out, figures=figures, as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the report and the numbers.")] = OUT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")
    ] = False,
) -> None:
    """Explain one answer of the bundled model about one of its test pictures."""
    with _errors_in_one_line():
        from vlmflow.scenes import sample

        shown = sample("scenes-reading", split="test", index=3)
        flow = _run(
            [shown.picture],
            shown.question,
            out=out,
            figures=False,
            load={"name": MODEL},
            explain={"signals": _split(SIGNALS)},
        )
    _announce(flow, out, figures=False, as_json=as_json)


def _run(
    images: Sequence[Image],
    question: str,
    *,
    out: Path,
    figures: bool,
    load: dict[str, Any],
    explain: dict[str, Any],
) -> InformationFlow:
    """Load, measure, write; the files arrive in `out` together at the very end."""
    from vlmflow.staging import staged

    with staged(out, (REPORT, NUMBERS, ARRAYS)) as staging, _progress() as progress:
        name = load.pop("name")
        progress(f"Loading {name}")
        _quiet_libraries()
        import vlmflow
        from vlmflow.flow.signals import check_signals

        check_signals(explain["signals"])

        vlm = vlmflow.load(name, **load)
        progress("Measuring")
        flow = vlm.explain(
            images,
            question,
            progress=lambda done, total: progress("Measuring", done, total),
            **explain,
        )
        command = shlex.join(["vlmflow", *sys.argv[1:]])
        flow = dataclasses.replace(flow, settings={**flow.settings, "command": command})
        progress("Writing")
        try:
            _write(flow, staging, figures=figures)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write to {str(out)!r}: {reason}") from error
    return flow


def _write(flow: InformationFlow, directory: Path, *, figures: bool) -> None:
    from vlmflow.report.explain_page import write_report

    flow.save(directory)
    write_report(flow, directory / REPORT)
    if figures:
        from vlmflow.report.figures import save_figures

        save_figures(flow, directory / FIGURES)


def _announce(flow: InformationFlow, out: Path, *, figures: bool, as_json: bool) -> None:
    if not as_json:
        typer.echo(f"{_printable(flow.answer)!r} -> {_printable(str(out / REPORT))}")
        return
    typer.echo(
        json.dumps(
            {
                "version": __version__,
                "model": flow.model,
                "question": flow.question,
                "answer": flow.answer,
                "answer_tokens": list(flow.answer_tokens),
                "signals": list(flow.signals),
                "layers": flow.layers,
                "image_tokens": len(flow.layout.image_positions),
                "report": str(out / REPORT),
                "numbers": str(out / NUMBERS),
                "arrays": str(out / ARRAYS),
                "figures": str(out / FIGURES) if figures else None,
            }
        )
    )


def _check_text(what: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"{what} is empty; put some words between the quotation marks")
    if "<image>" in text:
        raise InputError(
            f"{what} contains the image placeholder '<image>'; leave it out, the picture is put "
            "in for you"
        )


def _check_range(option: str, value: float, least: int) -> None:
    if not least <= value < float("inf"):  # also refuses NaN
        raise InputError(f"{option} {value} is out of range; give a number of at least {least}")


def _split(signals: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in signals.split(",") if name.strip()))
    if not names:
        raise InputError(f"--signals {signals!r} names no signal; for example --signals {SIGNALS}")
    return names


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Bad input ends in one line and exit code 2, Ctrl-C in 130; only bugs show a trace."""
    try:
        yield
    except VlmflowError as error:
        _complain(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written")
        raise typer.Exit(130) from None
    except (MemoryError, RuntimeError) as error:
        # torch's own out-of-memory errors are RuntimeErrors that differ from device to device.
        told = any(words in str(error) for words in ("out of memory", "can't allocate memory"))
        if not told and not isinstance(error, MemoryError):
            raise
        _complain("out of memory; try --low-memory, --whole, --dtype bfloat16 or a smaller model")
        raise typer.Exit(1) from None


def _complain(message: str) -> None:
    typer.echo(f"vlmflow: {_printable(' '.join(message.split()))}", err=True)


def _printable(text: str) -> str:
    """Escape what could steer a terminal: control characters, newlines, reversed text."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _quiet_libraries() -> None:
    """Keep other libraries' notices and bars off the terminal; ours say what is going on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """Show what is being done, on stderr and only to a person: `show(what, done, total)`."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int = 0, total: int | None = None) -> None:
            bar.update(
                task, description=_printable(what), completed=done, total=total, refresh=True
            )

        yield show
