"""``vlmflow certify TASK --out policy.json``: a truncation with a promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.terminal import (
    CONTINUES,
    check_range,
    columns,
    errors_in_one_line,
    notes,
    printable,
    progress,
    quiet_libraries,
)
from vlmflow.errors import InputError

if TYPE_CHECKING:
    from vlmflow.studies.certification.certificate import Certificate


@app.command()
def certify(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="What 'vlmflow tasks' lists, names joined by + for a mixture, or a .jsonl or .csv "
            "file.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            parser=options.path,
            help="The policy, policy.json; a directory of the same name holds page and tables.",
        ),
    ],
    model: options.Model = MODEL,
    risk: Annotated[
        str, typer.Option(help="Largest share of answers that change; none: not promised.")
    ] = "0.05",
    loss: Annotated[
        float | None,
        typer.Option(help="Largest mean loss of the task's score.", show_default="not promised"),
    ] = None,
    confidence: Annotated[float, typer.Option(help="How sure the promise has to be.")] = 0.9,
    calibration: Annotated[
        int, typer.Option(help="Calibration samples, one question per picture.")
    ] = 500,
    samples: Annotated[int, typer.Option(help="Test samples, on which the policy is run.")] = 200,
    layer: Annotated[
        list[int] | None,
        typer.Option(help="An exit layer; repeatable.", show_default="8 evenly spaced"),
    ] = None,
    keep: Annotated[
        list[float] | None,
        typer.Option(
            help="Share of image tokens that stays after an exit, to try; repeatable.",
            show_default="0 and 0.1",
        ),
    ] = None,
    rank_by: Annotated[
        str | None, typer.Option(help="Which of them stay.", show_default="last_attention")
    ] = None,
    signals: Annotated[
        str | None,
        typer.Option(
            help="Exit signals to choose from, separated by commas.", show_default="all of them"
        ),
    ] = None,
    timed: Annotated[int, typer.Option(help="Test samples whose prefill is timed.")] = 8,
    seed: Annotated[int, typer.Option(help="Which question of each picture, and the order.")] = 0,
    batch: options.SamplesAtOnce = "auto",
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Find where each input may drop its image tokens, at a risk that is promised.

    A run that was interrupted continues when the same command is given again.
    """
    with errors_in_one_line(CONTINUES):
        check_range("--samples", samples, 1)
        check_range("--timed", timed, 0)
        with progress() as show, notes():
            show("Checking the promise")
            quiet_libraries()
            from vlmflow.certification import ALL, exit_signals
            from vlmflow.studies.certification.settings import CertifySettings
            from vlmflow.tasks.registry import as_task
            from vlmflow.truncation.rankings.registry import DEFAULT

            # Before the model is loaded: arithmetic alone may say that it cannot be done.
            settings = CertifySettings(
                risk=share("--risk", risk),
                loss=loss,
                confidence=confidence,
                calibration=calibration,
                samples=samples,
                layers=None if not layer else tuple(layer),
                keeps=tuple(keep) if keep else CertifySettings.keeps,
                rank_by=rank_by or DEFAULT,
                timed=timed,
                seed=seed,
                batch=options.as_batch(batch),
            )
            named = exit_signals(ALL if signals is None else signals.split(","))
            data = as_task(task)
            show(f"Loading {model}")
            import vlmflow

            vlm = vlmflow.load(model, device=device, dtype=dtype and dtype.value, revision=revision)

            def show_progress(done: int, total: int) -> None:
                show(f"{data.name}: {done} of {total} measurements", done, total)

            certificate = vlmflow.certify(
                vlm, data, out=out, settings=settings, signals=list(named.values()),
                progress=show_progress,
            )  # fmt: skip
    print_certificate(certificate)
    page = out.with_suffix("") / "certificate.html"
    policy = "" if certificate.policy is None else f"{out} and "
    typer.echo(f"\nwritten to {printable(f'{policy}{page}')}")


def share(option: str, text: str) -> float | None:
    """Read a share, or none."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}={text!r} is neither a number nor none") from None


def print_certificate(certificate: Certificate) -> None:
    """Print promise, rivals and kinds of question."""
    from vlmflow.studies.certification.sentences import (
        by_group,
        distance_words,
        groups_words,
        headline,
        second_line,
    )

    for line in (headline, second_line, distance_words, groups_words):
        if text := line(certificate):
            typer.echo(printable(text))
    rows: list[tuple[str, ...]] = [("", "accepted", "spared", "changed")]
    rows += [
        (
            rival.name,
            rival.setting or ("" if rival.name == "oracle" else "nothing"),
            f"{100 * rival.saved:.1f} %",
            f"{100 * rival.risk:.1f} %",
        )
        for rival in certificate.rivals
    ]
    typer.echo("")
    for row_text in columns(rows):
        typer.echo(printable(row_text))
    groups = by_group(certificate.runs)
    if len(groups) > 1:
        kinds: list[tuple[str, ...]] = [("run on new samples", "n", "changed", "points lost")]
        kinds += [
            (
                str(row["group"]),
                str(row["n"]),
                f"{100 * row['risk']:.1f} %",
                "" if row["loss"] is None else f"{100 * row['loss']:+.1f}",
            )
            for row in groups
        ]
        typer.echo("")
        for row_text in columns(kinds):
            typer.echo(printable(row_text))
