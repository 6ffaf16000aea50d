"""What a study's page says in words: its headline, how sure that is, and what to be wary of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.statistics.loss_tests import least_samples
from vlmflow.studies.truncations import sentences
from vlmflow.studies.truncations.arms import UNTOUCHED
from vlmflow.studies.truncations.sentences import (
    CONTROL_NAMES,
    NAME_SHOWN,
    changed_by,
    many,
    percent,
    points,
    score_words,
    too_few,
)

if TYPE_CHECKING:
    from vlmflow.studies.truncations.choice import Recommendation
    from vlmflow.studies.truncations.results import StudyResult
    from vlmflow.studies.truncations.summaries import ArmSummary


def headline(study: StudyResult) -> str:
    """Say the finding in one sentence."""
    return sentences.headline(study.task.name, study.choice, study.summaries)


def second_line(study: StudyResult) -> str:
    """Say how the choice was made, and which figures to trust."""
    choice = study.choice
    lines = [
        f"{many(len(choice.verdicts), 'truncation')} tried on "
        f"{many(choice.count, 'calibration sample')}; to be chosen, a truncation has to save the "
        f"most operations of those whose loss is shown to be at most {points(choice.max_loss)}: "
        "with 95 % confidence for all of them together (Holm's correction).",
        "The calibration figures are those of a choice among many; the "
        f"{many(len(study.samples['test']), 'test sample')} had no part in it, and theirs are "
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
    choice = study.choice
    lacking = too_few(len(choice.verdicts), choice.count, choice.max_loss)
    if best is None and lacking:
        lines.append(f"{lacking[:1].upper()}{lacking[1:]}.")
    if best is not None and not best.holds:
        least = least_samples(best.max_loss, 1)
        if least is not None and best.test.count < least:
            lines.append(
                f"{many(best.test.count, 'test sample')} cannot show that little: it takes at "
                f"least {least:,}."
            )
    if study.failures:
        total = sum(map(len, study.samples.values()))
        lines.append(
            f"{len(study.failures)} of {many(total, 'sample')} failed under some arm; see "
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
        f"the untouched model's time, on {many(timed, 'calibration sample')}."
    )
