"""``vlmflow models|tasks|rankings|signals|presets``: what can be chosen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import typer

from vlmflow.cli.app import app
from vlmflow.cli.terminal import columns, errors_in_one_line


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
        from vlmflow.truncation.presets import PRESETS

        docs = {name: inspect.getdoc(make) or "" for name, make in PRESETS.items()}
        rows = [(name, doc.partition("\n")[0]) for name, doc in docs.items()]
    _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> None:
    typer.echo("\n".join(columns(rows)))
