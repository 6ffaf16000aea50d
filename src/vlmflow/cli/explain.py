"""``vlmflow explain IMAGE QUESTION`` and ``vlmflow demo``: measure one answer, write the report.

Without a question, ``vlmflow explain TASK`` does so for the samples of a task.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmflow import __version__
from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.explain_many import explain_many
from vlmflow.cli.terminal import (
    CONTINUES,
    UNFINISHED,
    check_range,
    check_text,
    errors_in_one_line,
    printable,
    progress,
    quiet_libraries,
)
from vlmflow.errors import InputError
from vlmflow.flow.signals.registry import DEFAULT_SIGNALS

if TYPE_CHECKING:
    from vlmflow.lvlm.chat import VisualSource
    from vlmflow.result.reading import Box

REPORT, NUMBERS, ARRAYS, FIGURES = "report.html", "flow.json", "flow.safetensors", "figures"
OUT = Path("vlmflow-report")


class Scalar(str, Enum):
    """What is explained of a token."""

    LOGPROB = "logprob"
    LOGIT = "logit"
    MARGIN = "margin"


class Split(str, Enum):
    """Which samples of a task."""

    CALIBRATION = "calibration"
    TEST = "test"


@app.command()
def explain(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|TASK",
            parser=options.path,
            help="The picture or video file; or, without a question, what 'vlmflow tasks' lists, "
            "or a .jsonl or .csv file.",
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to ask about the picture.")
    ] = None,
    model: options.Model = MODEL,
    more_images: options.MorePictures = None,
    frames: options.VideoFrames = None,
    out: options.Report = OUT,
    answer: Annotated[
        str | None, typer.Option(help="Explain this answer instead of the model's own.")
    ] = None,
    signals: Annotated[
        str | None,
        typer.Option(
            help="What to measure, separated by commas: what 'vlmflow signals' lists, with "
            "parameters in brackets where they are not the defaults, as in flow_map(layers=8). "
            f"Left out: {','.join(DEFAULT_SIGNALS)}. The report opens with the first that has one "
            "map for all layers.",
            show_default=False,
        ),
    ] = None,
    target: options.TargetWords = None,
    target_tokens: options.TargetTokens = None,
    of: options.TargetOf = options.Of.ANSWER,
    scalar: Annotated[Scalar, typer.Option(help="What to explain of each token.")] = Scalar.LOGPROB,
    per_token: Annotated[
        bool,
        typer.Option(
            "--per-token/--whole", help="Explain every answer token, or only the whole answer."
        ),
    ] = True,
    max_new_tokens: options.MaxNewTokens = 64,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Recompute layers instead of keeping them.")
    ] = False,
    no_gradients: Annotated[
        bool,
        typer.Option(
            "--no-gradients",
            help="No backward pass: attention alone, or what --signals names and needs none.",
        ),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Also test the map of the report by insertion and deletion, beside eight random "
            "orders: 144 short forward passes, as many at once as memory holds.",
        ),
    ] = False,
    truncate: Annotated[
        str | None,
        typer.Option(
            metavar="SETTINGS",
            help="Also answer with image tokens removed, as in vlmflow generate (layer=2,keep=16), "
            "and show what each layer saw.",
        ),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also write PNG and PDF figures.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(help="Of a task: how many samples.", show_default="20")
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Of a task: which split.", show_default="test")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="auto|N",
            parser=options.at_once,
            help="Of a task: samples at once; auto: as many as memory holds.",
            show_default="auto",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain one answer and write the report, or the answers to a task and a folder of reports.

    For one answer: OUT/report.html, OUT/flow.json and OUT/flow.safetensors, all together or none.
    For a task: OUT/index.html, which lists the answers, those that failed or are wrong first, and a
    directory for each of them; given again, the command goes on where it was.
    """
    with errors_in_one_line(CONTINUES if question is None else UNFINISHED):
        check_range("--max-new-tokens", max_new_tokens, 1)
        load = {"device": device, "dtype": dtype and dtype.value, "revision": revision}
        measured: dict[str, Any] = {
            "signals": None if signals is None else options.split_signals(signals),
            "target": options.as_target(target, target_tokens),
            "of": of.value,
            "scalar": scalar.value,
            "per_token": per_token,
            "max_new_tokens": max_new_tokens,
            "low_memory": low_memory,
            "gradients": not no_gradients,
        }
        if question is None:
            given: dict[str, object] = {
                "--answer": answer,
                "--image": more_images,
                "--figures": figures,
                "--frames": frames,
            }
            for option, value in given.items():
                if value:
                    raise InputError(f"{option} is for one picture and its question, not a task")
            explain_many(
                str(image),
                samples=20 if samples is None else samples,
                split="test" if split is None else split.value,
                batch="auto" if batch is None else options.as_batch(batch),
                out=out,
                as_json=as_json,
                model=model,
                load=load,
                explain=measured,
                trust=trust,
                truncate=truncate,
            )
            return
        of_task = {"--samples": samples, "--split": split, "--batch": batch}
        for option, choice in of_task.items():
            if choice is not None:
                raise InputError(
                    f"{option} is for a task; {printable(repr(question))} is one question"
                )
        check_text("the question", question)
        for option, text in {"--answer": answer, "--target": target}.items():
            if text is not None:
                check_text(option, text)
        visuals = options.open_visuals((image, *(more_images or ())), frames)
        _run(
            visuals,
            question,
            out=out,
            figures=figures,
            as_json=as_json,
            model=model,
            load=load,
            answer=answer,
            explain=measured,
            trust=trust,
            truncate=truncate,
        )


@app.command()
def demo(
    out: options.Report = OUT,
    as_json: options.AsJson = False,
) -> None:
    """Explain one answer of the bundled model about one of its test pictures."""
    with errors_in_one_line():
        from vlmflow.scenes import sample

        demonstration = sample("scenes-reading", split="test", index=3)
        _run(
            [demonstration.picture],
            demonstration.question,
            out=out,
            figures=False,
            as_json=as_json,
            model=MODEL,
            load={},
            explain={},
            regions=demonstration.regions,
        )


def _run(
    images: Sequence[VisualSource],
    question: str,
    *,
    out: Path,
    figures: bool,
    as_json: bool,
    model: str,
    load: dict[str, Any],
    explain: dict[str, Any],
    answer: str | None = None,
    regions: Mapping[str, Box] | None = None,
    trust: bool = False,
    truncate: str | None = None,
) -> None:
    """Load, measure, write, print; the files are moved to `out` together at the very end."""
    from vlmflow.files import staged

    with staged(out, (REPORT, NUMBERS, ARRAYS)) as staging, progress() as show:
        show(f"Loading {model}")
        quiet_libraries()
        import vlmflow
        from vlmflow.explanation.explain import explain as explain_answer
        from vlmflow.explanation.truncated import check_truncation, with_truncation
        from vlmflow.flow.options import ExplainOptions
        from vlmflow.reports.write import figures as write_figures
        from vlmflow.reports.write import report

        settings = ExplainOptions(**explain)  # before the model is loaded: it may refuse
        truncation = None if truncate is None else vlmflow.Truncation.parse(truncate)
        vlm = vlmflow.load(model, **load)
        if truncation is not None:
            check_truncation(vlm, truncation)
        show("Measuring")
        flow = explain_answer(
            vlm,
            images,
            question,
            answer,
            settings,
            progress=lambda done, total: show(f"Measuring: {done} of {total} passes", done, total),
        )
        if trust:
            from vlmflow.trust.of_explanation import with_trust

            flow = with_trust(
                vlm,
                flow,
                images,
                low_memory=settings.low_memory,
                progress=lambda done, total: show("Inserting and deleting", done, total),
            )
        if truncation is not None:
            show("Answering with tokens removed")
            flow = with_truncation(
                vlm,
                flow,
                vlm.prepare(images, question),
                truncation,
                max_new_tokens=settings.max_new_tokens,
            )
        command = shlex.join(["vlmflow", *sys.argv[1:]])
        flow = dataclasses.replace(flow, settings={**flow.settings, "command": command})
        show("Writing")
        try:
            flow.save(staging)
            report(flow, staging / REPORT, regions=regions)
            if figures:
                write_figures(flow, staging / FIGURES)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write to {str(out)!r}: {reason}") from error
    if not as_json:
        explained = repr(printable(flow.answer))
        if flow.words is not None:
            explained = f"Explained: {printable(flow.subject)}"
        typer.echo(f"{explained} -> {printable(str(out / REPORT))}")
        for tested in flow.trust:
            typer.echo(printable(str(tested)))
        if flow.truncated is not None:
            typer.echo(f"{printable(flow.truncated.answer)!r} with tokens removed")
        return
    facts = {
        "version": __version__,
        "model": flow.model,
        "question": flow.question,
        "answer": flow.answer,
        "explained": flow.subject,
        "answer_tokens": list(flow.answer_tokens),
        "signals": list(flow.signals),
        "layers": flow.layers,
        "image_tokens": len(flow.layout.image_positions),
        "report": str(out / REPORT),
        "numbers": str(out / NUMBERS),
        "arrays": str(out / ARRAYS),
        "figures": str(out / FIGURES) if figures else None,
        "trust": [
            {
                "says": str(tested),
                "signal": tested.signal,
                "layer": tested.layer,
                "difference": tested.difference,
                "random_limit": tested.limit,
            }
            for tested in flow.trust
        ],
        "truncated": None
        if flow.truncated is None
        else {
            "answer": flow.truncated.answer,
            "image_tokens_per_layer": flow.truncated.seen.sum(1).tolist(),
        },
    }
    typer.echo(json.dumps(facts))
