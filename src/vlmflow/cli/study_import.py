"""``vlmflow study --import``: runs that lmms-eval made, with our controls and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlmflow.cli import options
from vlmflow.cli.terminal import columns, printable, progress, quiet_libraries
from vlmflow.errors import InputError

if TYPE_CHECKING:
    from vlmflow.statistics.intervals import Estimate
    from vlmflow.studies.imported.rows import ImportedRow
    from vlmflow.studies.imported.study import ImportedStudy

READ = ("task", "metric", "max_loss", "seed")
"""Options of 'vlmflow study' that an import takes, too."""


def import_study(imports: Sequence[str], out: Path, given: Mapping[str, Any]) -> None:
    """Import runs, write their page and print what they say.

    ``given`` are the other options of ``vlmflow study`` that somebody gave, by their names.
    """
    for name in given:
        if name not in READ:
            raise InputError(
                f"--import reads runs that are made, and runs nothing itself; leave out "
                f"{'CONFIG' if name == 'config' else '--' + name.replace('_', '-')}"
            )
    paths = [_named(text) for text in imports]
    with progress() as show:
        show("Reading")
        quiet_libraries()
        from vlmflow.reports.directory import write_directory
        from vlmflow.studies.imported.store import read_imported, store_runs

        store_runs(paths, out, **given)
        show("Writing")
        study = read_imported(out)
        page = write_directory(study, out)
    print_imported(study)
    typer.echo(f"\nwritten to {printable(str(page))}")


def print_imported(study: ImportedStudy) -> None:
    """Print the finding, what casts doubt on it, and one line per run."""
    from vlmflow.reports.imported.sentences import cautions
    from vlmflow.studies.imported.sentences import headline

    typer.echo(printable(headline(study.rows, study.max_loss)))
    for line in cautions(study):
        typer.echo(printable(line))
    for task, samples in study.samples.items():
        typer.echo("")
        metric = f"{task}, {study.metrics[task]}, {len(samples)} samples"
        rows: list[tuple[str, ...]] = [
            (metric, "score", "difference", "p, corrected", "over random", "same answer", "loss")
        ]
        rows += [_row(row) for row in study.rows if row.task == task]
        for line in columns(rows, right=True, gap=3):
            typer.echo(printable(line))


def _row(row: ImportedRow) -> tuple[str, ...]:
    return (
        row.arm.name,
        f"{100 * row.score.value:.1f} ({100 * row.score.low:.0f} to {100 * row.score.high:.0f})",
        _points(row.difference),
        "" if row.adjusted is None else f"{row.adjusted:.3f}",
        _points(row.against[0][1] if row.against else None),
        f"{100 * row.agreement.value:.1f} %",
        row.verdict,
    )


def _points(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.value:+.1f} ({low:+.1f} to {high:+.1f})"


def _named(text: str) -> tuple[str, Path]:
    """Split ``NAME=DIR``; a path alone gets its name from the run's arguments."""
    name, equals, path = text.partition("=")
    if not equals or options.path(text).exists():
        return "", options.path(text)
    if not name.strip():
        raise InputError(f"--import {text!r} has no name before '='; write NAME=DIR")
    return name.strip(), options.path(path)
