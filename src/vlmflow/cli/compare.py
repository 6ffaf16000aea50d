"""``vlmflow compare``: a ranking of one's own beside all others."""

from __future__ import annotations

import time
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
    pace_words,
    printable,
    progress,
    quiet_libraries,
)
from vlmflow.errors import InputError
from vlmflow.parameters import is_number, literal, split_outside_brackets

if TYPE_CHECKING:
    from vlmflow.studies.comparison.comparison import Comparison
    from vlmflow.studies.comparison.rows import ComparedRow
    from vlmflow.studies.truncations.run import Progress


@app.command()
def compare(
    task: Annotated[
        str, typer.Option(help="What 'vlmflow tasks' lists, or a .jsonl or .csv file.")
    ],
    layer: Annotated[
        int, typer.Option(help="Decoder layer from which on tokens are gone, counted from 0.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            parser=options.path,
            help="Directory of the comparison; an unfinished one is continued.",
        ),
    ],
    rank_by: Annotated[
        list[str] | None,
        typer.Option(help="A ranking of your own, MODULE:CLASS, or a name; repeatable."),
    ] = None,
    against: Annotated[
        str, typer.Option(help="'all' bundled rankings, 'none', or names separated by commas.")
    ] = "all",
    keep: Annotated[
        str, typer.Option(help="Shares or counts of image tokens that stay.")
    ] = "0.5,0.25,0.1",
    model: options.Model = MODEL,
    samples: Annotated[int, typer.Option(help="Samples of the test split.")] = 200,
    timed: Annotated[
        int, typer.Option(help="Samples whose prefill is timed; 0: operations are counted.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of random choices and tests.")] = 0,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Compare rankings with random tokens: one table and one picture.

    A comparison that was interrupted continues when the same command is given again.
    """
    with errors_in_one_line(CONTINUES):
        check_range("--samples", samples, 1)
        check_range("--timed", timed, 0)
        keeps = _keeps(keep)
        others = (
            [] if against == "none" else [name.strip() for name in split_outside_brackets(against)]
        )
        with progress() as show:
            show("Checking the comparison")
            quiet_libraries()
            from vlmflow.studies.comparison.arms import compared_rankings, compared_truncations
            from vlmflow.tasks.registry import as_task

            # Before the model is loaded: what is given may not exist.
            given = [*(rank_by or []), *others]
            compared_truncations(compared_rankings(given, seed), layer, keeps)
            data = as_task(task)
            show(f"Loading {model}")
            import vlmflow

            began = time.monotonic()

            def show_progress(now: Progress) -> None:
                pace = pace_words(now.new, time.monotonic() - began)
                line = f"{data.name}: {now.done} of {now.total} samples, {pace}"
                show(line, now.done, now.total)

            with notes():
                vlm = vlmflow.load(
                    model, device=device, dtype=dtype and dtype.value, revision=revision
                )
                comparison = vlmflow.compare(
                    vlm, given, task=data, layer=layer, keep=keeps, out=out, samples=samples,
                    timed=timed, seed=seed, progress=show_progress,
                )  # fmt: skip
    print_comparison(comparison)
    typer.echo(f"\nwritten to {printable(str(out / 'comparison.html'))}")


def print_comparison(comparison: Comparison) -> None:
    """Print the finding and one line per ranking."""
    from vlmflow.studies.comparison.sentences import headline, keep_words, left_out_words

    typer.echo(
        printable(
            headline(
                comparison.study.task.name, comparison.layer, comparison.keeps, comparison.rows
            )
        )
        + "\n"
    )
    head = [f"keep {keep_words(keep)}" for keep in comparison.keeps]
    rows: list[tuple[str, ...]] = [("points above random tokens", *head)]
    rows.append(
        (
            "random tokens, score",
            *(f"{100 * comparison.random_rows[k].score.value:.1f} %" for k in comparison.keeps),
        )
    )
    rows += [
        (ranking.title, *(_cell(comparison.row(ranking, keep)) for keep in comparison.keeps))
        for ranking in comparison.rankings
    ]
    for line in columns(rows, right=True, gap=3):
        typer.echo(printable(line))
    for words in left_out_words(comparison.left_out):
        typer.echo(f"\n{printable(words)}")
    typer.echo("\n* differs from random tokens, corrected for all tests together")


def _cell(row: ComparedRow) -> str:
    from vlmflow.studies.comparison.rows import UNKNOWN

    low, high = 100 * row.gain.low, 100 * row.gain.high
    mark = "" if row.verdict == UNKNOWN else "*"
    return f"{100 * row.gain.value:+.1f}{mark} ({low:+.1f} to {high:+.1f})"


def _keeps(text: str) -> list[int | float]:
    keeps: list[int | float] = []
    for part in text.split(","):
        value = literal(part.strip())
        if not is_number(value):
            raise InputError(
                f"--keep {text!r}: {part.strip()!r} is not a number; for example 0.5,0.25,64"
            )
        keeps.append(value)
    return keeps
