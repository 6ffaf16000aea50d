"""What casts doubt on imported runs, and what was corrected for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.statistics.loss_tests import least_samples
from vlmflow.studies.imported.sentences import LISTED
from vlmflow.studies.truncations.arms import NO_IMAGE, UNTOUCHED
from vlmflow.studies.truncations.sentences import NAME_SHOWN, many, percent, points

if TYPE_CHECKING:
    from vlmflow.studies.imported.study import ImportedStudy


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
        f"Differences to the untouched run are tested together (Holm, {many(compared, 'test')}), "
        f"and so are losses of at most {points(study.max_loss)} ({many(tried, 'test')}): "
        "with 95 % confidence none of those called safe loses more. "
        "There are no separate samples to choose on, so the best of several differences flatters."
    )


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
