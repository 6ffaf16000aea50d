"""``vlmflow budget TASK --out DIR``: how many image tokens a task needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.certify import share
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
    from vlmflow.studies.budget.result import TokenBudget


@app.command()
def budget(
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
            metavar="DIR",
            parser=options.path,
            help="Directory of the study; an unfinished one is continued.",
        ),
    ],
    model: options.Model = MODEL,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Image tokens that a picture may take, separated by commas.",
            show_default="a half of the largest picture's, a quarter, ...",
        ),
    ] = None,
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
    ] = 200,
    samples: Annotated[int, typer.Option(help="Test samples, on which all is reported.")] = 200,
    layer: Annotated[
        int, typer.Option(help="From which layer on the truncations that are compared remove.")
    ] = 2,
    rank_by: Annotated[
        str | None,
        typer.Option(help="Which image tokens these keep.", show_default="last_attention"),
    ] = None,
    timed: Annotated[int, typer.Option(help="Test samples whose prefill is timed.")] = 8,
    seed: Annotated[int, typer.Option(help="Which question of each picture, and the order.")] = 0,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Find how few image tokens per picture a task needs, at a risk that is promised.

    For models whose resolution can be chosen. A run that was interrupted continues when the same
    command is given again.
    """
    with errors_in_one_line(CONTINUES):
        check_range("--samples", samples, 1)
        check_range("--timed", timed, 0)
        with progress() as show, notes():
            show("Checking the promise")
            quiet_libraries()
            from vlmflow.studies.budget.settings import BudgetSettings
            from vlmflow.tasks.registry import as_task
            from vlmflow.truncation.rankings.registry import DEFAULT

            # Before the model is loaded: arithmetic alone may say that it cannot be done.
            settings = BudgetSettings(
                budgets=None if tokens is None else _numbers(tokens),
                risk=share("--risk", risk),
                loss=loss,
                confidence=confidence,
                calibration=calibration,
                samples=samples,
                layer=layer,
                rank_by=rank_by or DEFAULT,
                timed=timed,
                seed=seed,
            )
            data = as_task(task)
            show(f"Loading {model}")
            import vlmflow

            vlm = vlmflow.load(model, device=device, dtype=dtype and dtype.value, revision=revision)

            def show_progress(done: int, total: int) -> None:
                show(f"{data.name}: {done} of {total} answers", done, total)

            result = vlmflow.budget(vlm, data, out=out, settings=settings, progress=show_progress)
    print_budget(result)
    typer.echo(f"\nwritten to {printable(str(out / 'budget.html'))}")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--tokens {text!r} is not a list of integers; for example 256,128,64"
        ) from None


def print_budget(result: TokenBudget) -> None:
    """Print the promise, one line per budget, and what to set."""
    from vlmflow.studies.budget.sentences import (
        compared_words,
        headline,
        second_line,
        what_to_set,
    )

    for line in (headline, second_line, compared_words):
        if text := line(result):
            typer.echo(printable(text))
    rows: list[tuple[str, ...]] = [
        ("per picture", "tokens", "score", "changed", "prefill", "promise", "truncated at its cost")
    ]
    own = result.untouched
    rows.append(
        ("untouched", f"{own.tokens:.0f}", _points(own.score), "", _time(own.seconds), "", "")
    )
    for row in result.rows:
        verdict = "yes" if row.accepted else "not tested" if row.p_value is None else "no"
        other = row.truncated
        rows.append(
            (
                row.name,
                f"{row.way.tokens:.0f}",
                _points(row.way.score),
                f"{100 * row.way.changed / result.measured:.1f} %",
                _time(row.way.seconds),
                verdict,
                "" if other is None else f"{_points(other.score)}, {_time(other.seconds)}",
            )
        )
    typer.echo("")
    for row_text in columns(rows):
        typer.echo(printable(row_text))
    if result.smallest is not None:
        typer.echo("\nto set:")
        for line_text in columns(what_to_set(result.smallest)):
            typer.echo(printable(line_text))


def _points(score: float) -> str:
    return f"{100 * score:.1f}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f} ms"
