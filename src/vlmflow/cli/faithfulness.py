"""``vlmflow faithfulness TASK``: which maps can be trusted, over a data set."""

from __future__ import annotations

from enum import Enum
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

if TYPE_CHECKING:
    from vlmflow.studies.faithfulness.study import FaithfulnessStudy


class ProtocolName(str, Enum):
    """How pictures appear and vanish."""

    VLMFLOW = "vlmflow"
    EAGLE = "eagle"


class ReplacementName(str, Enum):
    """What stands where the picture is not shown."""

    BLACK = "black"
    BLUR = "blur"
    MEAN = "mean"
    TOKENS = "tokens"


@app.command()
def faithfulness(
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
    signals: Annotated[
        str | None,
        typer.Option(
            help="The maps, separated by commas: what 'vlmflow signals' lists, with parameters in "
            "brackets.",
            show_default="all of them",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the test split.")] = 100,
    calibration: Annotated[
        int, typer.Option(help="Samples of the calibration split, on which layers are chosen.")
    ] = 20,
    combine: Annotated[
        bool,
        typer.Option(
            "--combine",
            help="Also try normalised sums of the best maps on the calibration split, and report "
            "the best one.",
        ),
    ] = False,
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="vlmflow: black and tokens, 16 steps; eagle: black, 64 regions."),
    ] = ProtocolName.VLMFLOW,
    replacement: Annotated[
        list[ReplacementName] | None,
        typer.Option(
            help="What stands where the picture is not shown (tokens: its image tokens are "
            "removed); repeatable, the first one chooses the layers.",
            show_default="the protocol's",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of a curve.", show_default="the protocol's")
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="A layer to try, counted from 0; repeatable.",
            show_default="all up to 12, else 8 evenly spaced",
        ),
    ] = None,
    sanity: Annotated[
        int, typer.Option(help="Test samples whose maps are compared under drawn weights.")
    ] = 4,
    timed: Annotated[int, typer.Option(help="Test samples on which costs are measured.")] = 2,
    batch: options.PicturesAtOnce = "auto",
    low_memory: Annotated[
        bool,
        typer.Option("--low-memory", help="Recompute layers instead of keeping activations."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of random maps and bootstraps.")] = 0,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Insert and delete pictures in the order of every map, beside controls that know nothing.

    Writes a page, figures, the tables as CSV, and everything as JSON. A study that was interrupted
    continues when the same command is given again.
    """
    with errors_in_one_line(CONTINUES):
        for option, value, least in (
            *(("--samples", samples, 1), ("--calibration", calibration, 0)),
            *(("--sanity", sanity, 0), ("--timed", timed, 0)),
            *(("--seed", seed, 0), ("--steps", 1 if steps is None else steps, 1)),
            *(("--layer", one, 0) for one in layer or ()),
        ):
            check_range(option, value, least)
        with progress() as show, notes():
            show(f"Loading {model}")
            quiet_libraries()
            import vlmflow
            from vlmflow.studies.faithfulness.run import ALL, chosen_signals
            from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
            from vlmflow.tasks.registry import as_task

            # Before the model is loaded: it may refuse.
            data = as_task(task)
            named = ALL if signals is None else options.split_signals(signals)
            chosen_signals(named)
            replacements = [one.value for one in replacement] if replacement else None
            FaithfulnessSettings(
                protocol=protocol.value,
                replacements=tuple(replacements) if replacements else None,
                steps=steps,
            )
            vlm = vlmflow.load(model, device=device, dtype=dtype and dtype.value, revision=revision)
            study = vlmflow.faithfulness(
                vlm,
                data,
                named,
                out=out,
                samples=samples,
                calibration=calibration,
                combine=combine,
                protocol=protocol.value,
                replacements=replacements,
                steps=steps,
                layers=layer or None,
                sanity=sanity,
                timed=timed,
                batch=options.as_batch(batch),
                low_memory=low_memory,
                seed=seed,
                progress=lambda done, total: show(
                    f"Measuring {task}: {done} of {total}", done, total
                ),
            )
    print_faithfulness(study)
    typer.echo(f"\nwritten to {printable(str(out / 'faithfulness.html'))}")


def print_faithfulness(study: FaithfulnessStudy) -> None:
    """Print a study's finding and its main table."""
    from vlmflow.studies.faithfulness.sentences import caveats, headline, main_rows, second_line

    frame = study.map_frame()
    typer.echo(printable(headline(study.facts, frame)))
    typer.echo(printable(second_line(study.facts)) + "\n")
    rows: list[tuple[str, ...]] = [
        ("map", "replacement", "insertion", "deletion", "difference", "than random")
    ]
    rows += [
        (row["map"], row["replacement"], row["insertion"], row["deletion"], row["difference"],
         row["chance"])
        for row in main_rows(study.facts, frame)
    ]  # fmt: skip
    for line in columns(rows, right=True, gap=3):
        typer.echo(printable(line))
    typer.echo()
    for line in (*caveats(study.facts, frame), *study.combined_lines()):
        typer.echo(printable(line))
