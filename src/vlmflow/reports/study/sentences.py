"""What a study says in words: its headline, how sure that is, and what to be wary of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vlmflow.reports.escape_invisible import shown
from vlmflow.statistics.intervals import Z, paired_difference
from vlmflow.studies.truncations.arms import UNTOUCHED, label

if TYPE_CHECKING:
    from vlmflow.statistics.intervals import Estimate
    from vlmflow.studies.truncations.arms import Arm
    from vlmflow.studies.truncations.results import ArmSummary, Recommendation, StudyResult

NAME_SHOWN = 120
MISSING = "–"
CONTROL_NAMES = {"random": "random choice", "down-sampled": "down-sampled picture"}


def percent(share: float | None) -> str:
    """Return ``"95.5 %"``."""
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def signed(share: float) -> str:
    """Return percentage points with their sign: ``"−0.5"``, ``"+1.9"``, ``"0.0"``."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def score_words(score: Estimate) -> tuple[str, str]:
    """Return ``("95.5 %", "91.0 to 97.8")``."""
    return percent(score.value), f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def difference_words(difference: Estimate | None) -> tuple[str, str]:
    """Return ``("−0.5", "−1.9 to +0.9")``, in points."""
    if difference is None:
        return MISSING, ""
    ends = f"{signed(difference.low)} to {signed(difference.high)}"
    return signed(difference.value), ends


def changed_by(difference: Estimate) -> str:
    """Return ``"−0.5 points (−1.9 to +0.9)"``."""
    value, ends = difference_words(difference)
    return f"{value} points ({ends})"


def points(share: float) -> str:
    """Return ``"2 points"``."""
    return "1 point" if share == 0.01 else f"{100 * share:g} points"


def arm_words(arm: Arm) -> str:
    """Name a truncation, and say what it does where the name does not."""
    name = shown(arm.name, NAME_SHOWN)
    if arm.truncation is None or label(arm.truncation) == arm.name:
        return name
    return f"{name} ({label(arm.truncation)})"


def verdict_words(best: Recommendation) -> str:
    """Name the chosen truncation by what the test samples say about it."""
    return "recommended" if best.holds else "chosen, does not hold"


def headline(study: StudyResult) -> str:
    """Say the finding in one sentence."""
    task, best = shown(study.task.name, NAME_SHOWN), study.recommendation
    if best is None:
        for split in ("calibration", "test"):
            if not any(summary.split == split for summary in study.summaries):
                return f"{task}: nothing can be recommended; no {split} sample was answered"
        return (
            f"{task}: no truncation is safe: none keeps the loss below "
            f"{points(study.plan.max_loss)} with 95 % confidence"
        )
    name, difference = arm_words(best.test.arm), best.test.difference
    assert difference is not None
    if best.holds:
        saved = 100 * (1 - best.test.cost_share)
        of_what = (
            "decoder's operations by FastV's formula"
            if best.test.flops_share is None
            else "prefill's operations"
        )
        return (
            f"{task}: {name} saves {saved:.{0 if saved >= 10 else 1}f} % of the "
            f"{of_what}; the score changes by {changed_by(difference)} on the test samples"
        )
    return (
        f"{task}: no truncation is shown to be safe: {name}, chosen on the calibration samples, "
        f"does not hold on the test samples, where the score changes by "
        f"{changed_by(difference)}"
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
    sentences = [
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
            sentences.append(f"Untouched, the model's {metric} there is {value} ({ends}).")
    best = study.recommendation
    if best is not None:
        sentences.append(_time_words(study, best.test))
    return " ".join(sentences)


def cautions(study: StudyResult) -> list[str]:
    """Say what speaks against the headline."""
    sentences, best = [], study.recommendation
    if best is not None:
        if not best.holds:
            sentences.append(_broken(best))
        beaten = [
            f"{CONTROL_NAMES.get(control.kind, shown(control.name, NAME_SHOWN))} "
            f"({changed_by(difference)})"
            for control in study.controls(best.test.arm)
            if (difference := study.against(best.test.arm, control, "test")) and difference.low <= 0
        ]
        if beaten:
            sentences.append(
                f"{shown(best.test.arm.name, NAME_SHOWN)} is not shown to score higher than "
                f"{' or '.join(beaten)} at the same budget: what it keeps may not matter."
            )
    for split in ("calibration", "test"):
        counts = [summary.count for summary in study.summaries if summary.split == split]
        needed = _needed(study.plan.max_loss)
        fails = best is None if split == "calibration" else best is not None and not best.holds
        if counts and fails and not _can_be_shown(max(counts), study.plan.max_loss):
            reach = "no number is enough" if needed is None else f"it takes at least {needed:,}"
            sentences.append(
                f"{_many(max(counts), f'{split} sample')} cannot show that little: even a "
                "truncation that changes no answer may lose more than "
                f"{points(study.plan.max_loss)} for all they tell; {reach}."
            )
    if study.failures:
        total = sum(map(len, study.samples.values()))
        sentences.append(
            f"{len(study.failures)} of {_many(total, 'sample')} failed under some arm; see "
            "“Failures”."
        )
    return sentences


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
