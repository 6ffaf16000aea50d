"""What imported runs say in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from vlmflow.escape_invisible import shown
from vlmflow.studies.imported.rows import ImportedRow
from vlmflow.studies.truncations.choice import SAFE, UNSAFE
from vlmflow.studies.truncations.sentences import NAME_SHOWN, changed_by, points

LISTED = 4


def headline(rows: Sequence[ImportedRow], max_loss: float) -> str:
    """Say which truncations are shown to keep the score, on one task or on several."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    where = shown(tasks[0], NAME_SHOWN) if len(tasks) == 1 else f"{len(tasks)} tasks"
    tried = [row for row in rows if row.arm.kind == "truncation"]
    loss = points(max_loss)
    if not tried:
        return f"{where}: no truncation is among these runs, only controls"
    safe = [row for row in tried if row.verdict == SAFE]
    if safe:
        named = ", ".join(_named(row, len(tasks) > 1) for row in safe[:LISTED])
        more = f" and {len(safe) - LISTED} more" if len(safe) > LISTED else ""
        return f"{where}: shown to lose at most {loss}: {named}{more}"
    unsafe = sum(row.verdict == UNSAFE for row in tried)
    if unsafe == len(tried):
        lose = "the truncation loses" if unsafe == 1 else f"all {unsafe} truncations lose"
        return f"{where}: {lose} more than {loss}"
    rest = f"; {unsafe} of {len(tried)} lose more" if unsafe else ""
    return f"{where}: no truncation is shown to lose at most {loss}{rest}"


def _named(row: ImportedRow, with_task: bool) -> str:
    assert row.difference is not None
    name = shown(row.arm.name, NAME_SHOWN)
    where = f" on {shown(row.task, NAME_SHOWN)}" if with_task else ""
    return f"{name}{where}, {changed_by(row.difference)}"
