"""``vlmflow reproduce``: a paper's table, run again on one's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmflow.cli import options
from vlmflow.cli.app import app
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
    from vlmflow.reproductions.estimate import Estimate
    from vlmflow.reproductions.reproduction import Reproduction, Row
    from vlmflow.reproductions.request import Request
    from vlmflow.reproductions.run import Step

GIB = 2**30


@app.command()
def reproduce(
    table: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="Its name; left out: all tables are listed."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=options.MODEL_HELP, show_default="the table's first"),
    ] = None,
    stands_for: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="HUB_ID",
            help="The table's model that --model is a copy of.",
            show_default="its own name",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=options.path,
            help="Directory of page, tables and studies; an unfinished one is continued.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what it takes, and run nothing; reads the config alone."),
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(help="Samples of every data set.", show_default="all that the table has"),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Data sets, separated by commas.", show_default="all of the table's"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR", help="Where a copy of a data set is, as on the hub; repeatable."
        ),
    ] = None,
    memory: Annotated[float, typer.Option(help="With --plan: the card's memory, in GB.")] = 24.0,
    seed: Annotated[int, typer.Option(help="Of bootstraps.")] = 0,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Run a published table again: every printed figure beside the measured one.

    Says what differs in protocol, and which figures cannot be run. A run that was interrupted
    continues when the same command is given again.
    """
    if table is None:
        with errors_in_one_line():
            given = {"--model": model, "--as": stands_for, "--out": out, "--only": only}
            for option in [name for name, value in given.items() if value is not None]:
                raise InputError(f"{option} belongs to a table; 'vlmflow reproduce' lists them")
            _list()
        return
    with errors_in_one_line(CONTINUES):
        if samples is not None:
            check_range("--samples", samples, 1)
        check_range("--seed", seed, 0)
        if model == "":
            raise InputError("--model is empty; leave it out for the table's first model")
        if out is None and not plan:
            raise InputError("a run needs --out DIR to keep its results in; --plan needs none")
        with progress() as show:
            show("Checking the table")
            quiet_libraries()
            from vlmflow.reproductions.request import Request, read_sources

            request = Request(
                table,
                model=model or "",
                stands_for=stands_for or "",
                samples=samples,
                only=() if only is None else tuple(name.strip() for name in only.split(",")),
                sources=read_sources(data or []),
                seed=seed,
            )
            # It is looked up, and may not exist.
            name = request.published_model.hub if model is None else model
            if plan:
                show(f"Reading the config of {name}")
                estimated = _estimated(request, memory, dtype and dtype.value, revision)
            else:
                assert out is not None
                from vlmflow.reproductions.run import check_data, run_reproduction

                check_data(request)
                show(f"Loading {name}")
                import vlmflow

                with notes():
                    vlm = vlmflow.load(
                        name, device=device, dtype=dtype and dtype.value, revision=revision
                    )
                    result = run_reproduction(
                        request, vlm, out, lambda step: show(_line(step), step.done, step.total)
                    )
                show("Writing")
                from vlmflow.reports.reproduction.directory import write_reproduction

                page = write_reproduction(result, out)
    if plan:
        _print_plan(request, estimated, out)
    else:
        print_reproduction(result)
        typer.echo(f"\nwritten to {printable(str(page))}")


def print_reproduction(result: Reproduction) -> None:
    """Print the finding, one line per figure, and what to bear in mind."""
    from vlmflow.reproductions import sentences

    typer.echo(printable(sentences.headline(result)) + "\n")
    digits = result.request.table.digits
    head = ("", "printed", "measured", "difference", "n", "printed is")
    rows = [head, *(_cells(row, digits) for row in result.compared)]
    for line in columns(rows, right=True, gap=3):
        typer.echo(printable(line))
    changes = [row for row in result.compared if row.published.is_removal]
    if changes:
        typer.echo()
        rows = [("change to untouched", "printed", "measured", "n", "printed is")]
        rows += [_change_cells(row, digits) for row in changes]
        for line in columns(rows, right=True, gap=3):
            typer.echo(printable(line))
    typer.echo(f"\n{printable(sentences.RULE)}")
    for line in sentences.cautions(result):
        typer.echo(printable(line))
    _print_texts("differs in protocol", result.request.table.differences)
    _print_texts("doubts about what is printed", result.request.table.doubts)
    for reason, missing in sentences.reasons(result.rows):
        count = len(missing)
        typer.echo(printable(f"not run ({count} figure{'s' if count > 1 else ''}): {reason}"))


def _cells(row: Row, digits: int) -> tuple[str, ...]:
    from vlmflow.reproductions.sentences import estimate_words, figure_words, in_brackets

    assert row.measured is not None
    return (
        _name(row),
        figure_words(row.published.value, digits),
        in_brackets(estimate_words(row.measured.estimate, digits)),
        in_brackets(estimate_words(row.difference, digits, signed=True)),
        f"{row.measured.count:,}",
        row.verdict,
    )


def _change_cells(row: Row, digits: int) -> tuple[str, ...]:
    from vlmflow.reproductions.sentences import estimate_words, figure_words, in_brackets

    assert row.measured is not None
    assert row.printed_change is not None
    return (
        _name(row),
        figure_words(row.printed_change, digits, signed=True),
        in_brackets(estimate_words(row.measured.change, digits, signed=True)),
        f"{row.measured.count:,}",
        row.change_verdict,
    )


def _name(row: Row) -> str:
    return f"{row.published.data}, {row.published.figure}, {row.arm}"


def _print_texts(title: str, texts: tuple[str, ...]) -> None:
    if texts:
        typer.echo(f"\n{title}:")
        for text in texts:
            typer.echo(f"* {printable(text)}")


def _line(step: Step) -> str:
    from vlmflow.reproductions.sentences import duration

    left = "" if step.seconds_left is None else f", about {duration(step.seconds_left)} left"
    return f"{step.task}: {step.done} of {step.total} samples{left}"


def _list() -> None:
    from vlmflow.reproductions.published import LEFT_OUT, published_table, table_names

    for name in table_names():
        table = published_table(name)
        runnable = [figure for figure in table.figures if not table.why_not(figure)]
        models = ", ".join(model.hub for model in table.models if model.hub)
        typer.echo(f"{name}\n    {table.title}\n    {table.paper}")
        typer.echo(f"    {len(runnable)} of {len(table.figures)} figures run here; {models}\n")
    for line in LEFT_OUT:
        typer.echo(f"not there: {line}")


def _estimated(
    request: Request, memory: float, dtype: str | None, revision: str | None
) -> Estimate:
    import torch

    from vlmflow.lvlm.skeleton import open_skeleton
    from vlmflow.reproductions.estimate import estimate
    from vlmflow.serving.estimate import gigabytes

    budget = gigabytes(memory)
    skeleton, layers = open_skeleton(request.model_name, revision=revision)
    chosen = skeleton.dtype if dtype is None or dtype == "auto" else getattr(torch, dtype)
    return estimate(request, skeleton, layers, chosen, budget)


def _print_plan(request: Request, estimated: Estimate, out: Path | None) -> None:
    from vlmflow.reproductions.run import measured_rates
    from vlmflow.reproductions.sentences import duration

    table, rates = request.table, {} if out is None else measured_rates(out)
    typer.echo(
        f"{table.name} on {printable(request.model_name)}: weights "
        f"{estimated.weights / 1e9:.2f} GB in {estimated.dtype}\n"
    )
    kind = "maps" if table.is_faithfulness else "arms"
    passes = "forward passes" if table.is_faithfulness else "prefills"
    rows: list[tuple[str, ...]] = [
        ("", "samples", kind, passes, "prompt", "operations", "caches", "activations", "in all",
         f"fits {estimated.memory / 1e9:g} GB", "time")
    ]  # fmt: skip
    for part in estimated.data:
        rate = rates.get(part.data.task)
        rows.append(
            (
                part.data.task,
                f"{part.samples:,}",
                str(part.arms),
                f"{part.forwards:,}",
                f"{part.prompt:,}",
                f"{part.operations / 1e15:,.2f} PFLOP",
                "not counted" if part.cache is None else f"{part.cache / 1e9:.2f} GB",
                f"{part.activations / 1e9:.2f} GB",
                f"{estimated.needed(part) / 1e9:.2f} GB",
                "yes" if estimated.fits(part) else "no",
                "not measured" if rate is None else duration(rate * part.steps),
            )
        )
    for line in columns(rows, right=True, gap=3):
        typer.echo(printable(line))
    typer.echo(
        "\nPrompts are typical ones, in tokens, not measured. Operations are at most the decoder's "
        "over whole prompts;\nthe arms of a sample share layers. It fits where weights, caches and "
        "activations take at most 90 % of the memory."
    )
    if not rates:
        typer.echo(
            "Time is measured, not guessed: a run says how long is left from its first samples on, "
            "and --plan with its --out does."
        )
    else:
        typer.echo("Time is by the samples that were measured in this directory.")
    missing = [figure for figure in table.figures if request.why_not(figure)]
    if missing:
        typer.echo(f"Not run: {len(missing)} of {len(table.figures)} printed figures.")
