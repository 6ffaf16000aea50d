"""``vlmflow models|tasks|rankings|presets``: what there is to choose from."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import typer

from vlmflow.cli.app import app
from vlmflow.cli.terminal import errors_in_one_line, quiet_libraries


@app.command()
def models() -> None:
    """List the types of models, with an example of each and what works with it."""
    from vlmflow.lvlm.families.table import CROSS_ATTENTION, UNKNOWN, rows

    _table(list(rows()))
    typer.echo(f"\n{UNKNOWN}\n{CROSS_ATTENTION}")


@app.command()
def tasks() -> None:
    """List the data sets that 'vlmflow study' and 'vlmflow cliff' know."""
    from vlmflow.tasks.registry import known_tasks

    _table([(task.name, task.metric, task.description) for task in known_tasks()])
    typer.echo("\nor any .jsonl or .csv file with the columns image, question and answer")


@app.command()
def rankings() -> None:
    """List the rankings that choose which image tokens stay."""
    from vlmflow.truncation.rankings.registry import RANKINGS

    _table(list(RANKINGS.names().items()))


@app.command()
def signals() -> None:
    """List the signals that say how much each image token matters."""
    from vlmflow.flow.signals.registry import SIGNALS

    _table(list(SIGNALS.names().items()))


@app.command()
def presets() -> None:
    """List published methods, with the first line of what is known about each."""
    with errors_in_one_line():
        quiet_libraries()
        from vlmflow.truncation.presets import PRESETS

        rows = []
        for name, make in PRESETS.items():
            lines = (inspect.getdoc(make) or "").splitlines()
            rows.append((name, lines[0] if lines else ""))
    _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Print columns, each as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())
