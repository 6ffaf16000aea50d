"""What imported runs say in sentences: the finding, and what casts doubt on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.statistics.loss_tests import least_samples
from vlmflow.studies.truncations.arms import NO_IMAGE, UNTOUCHED
from vlmflow.studies.truncations.choice import SAFE, UNSAFE
from vlmflow.studies.truncations.sentences import NAME_SHOWN, changed_by, many, percent, points

if TYPE_CHECKING:
    from vlmflow.studies.imported.study import ImportedRow, ImportedStudy

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


def cautions(study: ImportedStudy) -> list[str]:
    """Say what casts doubt on the figures, or is missing to judge them by."""
    lines = [line for task in study.samples for line in _doubts(study, task)]
    kinds = {arm.kind for arm in study.arms}
    if NO_IMAGE not in kinds:
        lines.append(
            "There is no run without the picture: whether the untouched score needs it cannot be "
            "seen. Add one with layer=0,keep=0."
        )
    controlled = {name for arm in study.arms for name in arm.of}
    bare = [shown(arm.name, NAME_SHOWN) for arm in study.arms if arm.ranks]
    bare = [name for name in bare if name not in controlled]
    if bare:
        lines.append(
            f"No run of as many random tokens stands beside {', '.join(bare[:LISTED])}: add one "
            "with the same layer and keep and rank_by=random."
        )
    if not study.names_pictures:
        lines.append(
            "The logs do not say which samples share a picture: each is taken to stand alone, and "
            "intervals and tests are too sure of themselves where some do."
        )
    return lines


def second_line(study: ImportedStudy) -> str:
    """Say what was corrected for what."""
    compared = sum(row.difference is not None for row in study.rows)
    tried = sum(row.arm.kind == "truncation" for row in study.rows)
    return (
        f"{many(compared, 'difference')} to the untouched run, tested together (Holm); "
        f"{many(tried, 'verdict')} about a loss of at most {points(study.max_loss)}, with 95 % "
        "confidence all together. There are no separate samples to choose on, so the best of "
        "several differences flatters."
    )


def _named(row: ImportedRow, with_task: bool) -> str:
    assert row.difference is not None
    name = shown(row.arm.name, NAME_SHOWN)
    where = f" on {shown(row.task, NAME_SHOWN)}" if with_task else ""
    return f"{name}{where}, {changed_by(row.difference)}"


def _doubts(study: ImportedStudy, task: str) -> list[str]:
    rows = [row for row in study.rows if row.task == task]
    own = next(row for row in rows if row.arm.kind == UNTOUCHED)
    name, lines = shown(task, NAME_SHOWN), []
    if own.score.value == 0:
        lines.append(f"{name}: the untouched run scores 0, so that there is nothing to lose.")
    lines += [
        f"{name}: the untouched score, {percent(own.score.value)}, is not shown to be higher than "
        f"without the picture ({percent(blind.score.value)})."
        for blind in rows
        if blind.arm.kind == NO_IMAGE
        and blind.difference is not None
        and blind.difference.high >= 0
    ]
    tried = sum(row.arm.kind == "truncation" for row in study.rows)
    least = least_samples(study.max_loss, tried) if tried else None
    if tried and study.max_loss > 0 and least is not None and own.count < least:
        lines.append(
            f"{name}: to show that one of {many(tried, 'truncation')} loses at most "
            f"{points(study.max_loss)} takes at least {many(least, 'sample')}, and there are "
            f"{own.count:,}."
        )
    return lines
