"""What a study's page says in words: its headline, how sure that is, and what to be wary of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.statistics.intervals import Z, paired_difference
from vlmflow.studies.truncations import sentences
from vlmflow.studies.truncations.arms import UNTOUCHED
from vlmflow.studies.truncations.sentences import (
    CONTROL_NAMES,
    NAME_SHOWN,
    changed_by,
    percent,
    points,
    score_words,
)

if TYPE_CHECKING:
    from vlmflow.studies.truncations.results import StudyResult
    from vlmflow.studies.truncations.summaries import ArmSummary, Recommendation


def headline(study: StudyResult) -> str:
    """Say the finding in one sentence."""
    return sentences.headline(
        study.task.name, study.recommendation, study.summaries, study.plan.max_loss
    )


def second_line(study: StudyResult) -> str:
    """Say how the choice was made, and which figures to trust."""
    tried = [
        summary
        for summary in study.summaries
        if summary.split == "calibration"
        and summary.arm.kind == "truncation"
        and summary.arm.truncation is not None
        and not summary.arm.truncation.is_oracle
    ]
    count = max((summary.count for summary in tried), default=0)
    lines = [
        f"{_many(len(tried), 'truncation')} tried on {_many(count, 'calibration sample')}; to be "
        "chosen, a truncation has to save the most operations of those whose loss is, with 95 % "
        f"confidence, at most {points(study.plan.max_loss)}.",
        "The calibration figures are those of a choice among many; the "
        f"{_many(len(study.samples['test']), 'test sample')} had no part in it, and theirs are "
        "the figures to trust.",
    ]
    own = [summary for summary in study.summaries if summary.arm.kind == UNTOUCHED]
    for summary in own:
        if summary.split == "test":
            metric = shown(study.task.metric, NAME_SHOWN)
            value, ends = score_words(summary.score)
            lines.append(f"Untouched, the model's {metric} there is {value} ({ends}).")
    best = study.recommendation
    if best is not None:
        lines.append(_time_words(study, best.test))
    return " ".join(lines)


def cautions(study: StudyResult) -> list[str]:
    """Say what speaks against the headline."""
    lines, best = [], study.recommendation
    if best is not None:
        if not best.holds:
            lines.append(_broken(best))
        beaten = [
            f"{CONTROL_NAMES.get(control.kind, shown(control.name, NAME_SHOWN))} "
            f"({changed_by(difference)})"
            for control in study.controls(best.test.arm)
            if (difference := study.against(best.test.arm, control, "test")) and difference.low <= 0
        ]
        if beaten:
            lines.append(
                f"{shown(best.test.arm.name, NAME_SHOWN)} is not shown to score higher than "
                f"{' or '.join(beaten)} at the same budget: what it keeps may not matter."
            )
    for split in ("calibration", "test"):
        counts = [summary.count for summary in study.summaries if summary.split == split]
        needed = _needed(study.plan.max_loss)
        fails = best is None if split == "calibration" else best is not None and not best.holds
        if counts and fails and not _can_be_shown(max(counts), study.plan.max_loss):
            reach = "no number is enough" if needed is None else f"it takes at least {needed:,}"
            lines.append(
                f"{_many(max(counts), f'{split} sample')} cannot show that little: even a "
                "truncation that changes no answer may lose more than "
                f"{points(study.plan.max_loss)} for all they tell; {reach}."
            )
    if study.failures:
        total = sum(map(len, study.samples.values()))
        lines.append(
            f"{len(study.failures)} of {_many(total, 'sample')} failed under some arm; see "
            "“Failures”."
        )
    return lines


def _broken(best: Recommendation) -> str:
    calibration, test = best.chosen.difference, best.test.difference
    assert calibration is not None
    assert test is not None
    return (
        f"On the calibration samples it changed the score by {changed_by(calibration)}, which "
        f"passed; on the test samples by {changed_by(test)}, which leaves room for a loss above "
        f"{points(best.max_loss)}. Do not use it on this evidence."
    )


def _time_words(study: StudyResult, summary: ArmSummary) -> str:
    own, cut = (study.seconds[name] for name in (UNTOUCHED, summary.arm.name))
    timed = sum(bool(a and b) for a, b in zip(own, cut, strict=True))
    if summary.prefill is None or summary.prefill_share is None:
        return "Prefills were not timed."
    return (
        f"Its prefill took {1000 * summary.prefill:.1f} ms, {percent(summary.prefill_share)} of "
        f"the untouched model's time, on {_many(timed, 'calibration sample')}."
    )


def _can_be_shown(samples: int, max_loss: float) -> bool:
    """Whether so many samples without any difference would pass."""
    nothing = [0.0] * samples
    return -paired_difference(nothing, nothing).low <= max_loss


def _needed(max_loss: float) -> int | None:
    """Count the samples without any difference that pass: their interval is Z √2 / (n + 2)."""
    return math.ceil(Z * math.sqrt(2) / max_loss) - 2 if max_loss else None


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
