"""``vlmflow cliff TASK``: where a task's image tokens become redundant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.terminal import (
    CONTINUES,
    check_range,
    errors_in_one_line,
    notes,
    printable,
    progress,
    quiet_libraries,
)

if TYPE_CHECKING:
    from vlmflow.studies.cliff_layer.study import CliffStudy


@app.command()
def cliff(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="What 'vlmflow tasks' lists, or a .jsonl or .csv file."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            parser=options.path,
            help="Directory of the study; an unfinished one is continued.",
        ),
    ],
    model: options.Model = MODEL,
    samples: Annotated[int, typer.Option(help="Samples of the test split.")] = 200,
    calibration: Annotated[int, typer.Option(help="Samples of the calibration split.")] = 100,
    changed: Annotated[
        float, typer.Option(help="Share of answers that removal may change.")
    ] = 0.05,
    tolerance: Annotated[float, typer.Option(help="Mean KL in nats that it may cost.")] = 0.1,
    batch: options.SamplesAtOnce = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the bootstraps.")] = 0,
    knockout: Annotated[
        bool,
        typer.Option(
            "--knockout",
            help="Also cut the answer off from image tokens that stay, at each layer and from it "
            "on.",
        ),
    ] = False,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Remove all image tokens from every layer on, and find the layer from which none is missed.

    Writes a page, a figure, a table of layers and one of samples, and everything as JSON. A study
    that was interrupted continues when the same command is given again.
    """
    with errors_in_one_line(CONTINUES):
        check_range("--samples", samples, 1)
        check_range("--calibration", calibration, 1)
        check_range("--changed", changed, 0)
        check_range("--tolerance", tolerance, 0)
        check_range("--seed", seed, 0)
        with progress() as show, notes():
            show(f"Loading {model}")
            quiet_libraries()
            import vlmflow
            from vlmflow.tasks.registry import as_task

            data = as_task(task)  # before the model is loaded
            vlm = vlmflow.load(model, device=device, dtype=dtype and dtype.value, revision=revision)
            study = vlmflow.cliff_study(
                vlm,
                data,
                out=out,
                samples=samples,
                calibration=calibration,
                tolerance=tolerance,
                changed=changed,
                batch=options.as_batch(batch),
                seed=seed,
                knockout=knockout,
                progress=lambda done, total: show(
                    f"Measuring {task}: {done} of {total} samples", done, total
                ),
            )
    print_cliff(study)
    typer.echo(f"\nwritten to {printable(str(out / 'cliff.html'))}")


def print_cliff(study: CliffStudy) -> None:
    """Print a study's finding and its tables."""
    from vlmflow.reports.cliff.page import headline, second_line
    from vlmflow.studies.cliff_layer.knockout import ONWARDS, SINGLE
    from vlmflow.studies.cliff_layer.sentences import error_words, rank_words

    typer.echo(printable(headline(study)))
    typer.echo(printable(second_line(study)) + "\n")
    typer.echo("removed from   answers changed          mean KL")
    for row in study.layer_frame().to_dict("records"):
        share, low, high = (100 * row[f"changed{end}"] for end in ("", " low", " high"))
        changed = f"{share:5.1f} % ({low:.1f} to {high:.1f})"
        lost = f"{row['kl']:.3f} ({row['kl low']:.3f} to {row['kl high']:.3f})"
        typer.echo(f"layer {row['layer']:<4}    {changed:25}{lost}")
    figures = study.knockout_figures()
    if figures is not None:
        typer.echo(f"\n{printable(str(figures))}\n")
        typer.echo("cut off        from it on: changed      at it alone: changed")
        for row in study.layer_frame().to_dict("records"):
            cells = []
            for prefix in (ONWARDS, SINGLE):
                share, low, high = (
                    100 * row[f"{prefix}changed{end}"] for end in ("", " low", " high")
                )
                cells.append(f"{share:5.1f} % ({low:.1f} to {high:.1f})")
            typer.echo(f"layer {row['layer']:<4}    {cells[0]:25}{cells[1]}")
    typer.echo("\npredicted by       mean error in layers     rank correlation")
    for prediction in study.predictions:
        error, rank = error_words(prediction), rank_words(prediction)
        typer.echo(f"{prediction.signal:19}{error:25}{rank}")
