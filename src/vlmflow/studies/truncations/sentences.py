"""A study's figures in words, and its finding in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmflow.escape_invisible import shown
from vlmflow.statistics.intervals import Estimate
from vlmflow.statistics.loss_tests import least_samples
from vlmflow.studies.truncations.arms import NO_IMAGE, UNTOUCHED, Arm, label
from vlmflow.studies.truncations.choice import SAFE, UNSAFE, Choice, Recommendation
from vlmflow.studies.truncations.summaries import ArmSummary
from vlmflow.tasks.base import SPLITS

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
    if best.holds:
        return "recommended"
    difference = best.test.difference
    shown_unsafe = difference is not None and difference.high < -best.max_loss
    return "chosen, does not hold" if shown_unsafe else "chosen, not shown to hold"


def headline(task: str, choice: Choice, summaries: Sequence[ArmSummary]) -> str:
    """Say a study's finding in one sentence, after what casts doubt on all of it."""
    task = shown(task, NAME_SHOWN)
    for split in SPLITS:
        if not any(summary.split == split for summary in summaries):
            return f"{task}: nothing can be recommended; no {split} sample was answered"
    finding = _finding(choice)
    doubt = _doubt(summaries)
    return f"{task}: {doubt}; {finding}" if doubt else f"{task}: {finding}"


def _finding(choice: Choice) -> str:
    best = choice.recommendation
    if best is None:
        return _no_choice(choice)
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
            f"{name} saves {saved:.{0 if saved >= 10 else 1}f} % of the {of_what}; the score "
            f"changes by {changed_by(difference)} on the test samples"
        )
    _, verdict = verdict_words(best).split(", ")
    return (
        f"no truncation is shown to be safe: {name}, chosen on the calibration samples, "
        f"{verdict.replace('not shown', 'is not shown')} on the test samples, where the score "
        f"changes by {changed_by(difference)}"
    )


def _no_choice(choice: Choice) -> str:
    """Keep apart what is not safe and what these samples cannot tell."""
    tried, loss = len(choice.verdicts), points(choice.max_loss)
    unsafe = sum(verdict == UNSAFE for verdict in choice.verdicts.values())
    of_which = "the one" if tried == 1 else f"all {tried}"
    if tried and unsafe == tried:
        return f"no truncation is safe: {of_which} tried lose{'s'[tried != 1 :]} more than {loss}"
    lacking = too_few(tried, choice.count, choice.max_loss)
    if lacking:
        return f"cannot tell whether any truncation is safe: {lacking}"
    safe = sum(verdict == SAFE for verdict in choice.verdicts.values())
    if safe:
        return f"no truncation that keeps the loss within {loss} saves any operations"
    rest = "" if not unsafe else f"; {unsafe} of {tried} lose more"
    return (
        "no truncation is shown to be safe: with 95 % confidence none keeps the loss within "
        f"{loss}{rest}"
    )


def too_few(tried: int, count: int, max_loss: float) -> str | None:
    """Say that so many calibration samples cannot show any truncation to be safe, if so."""
    least = least_samples(max_loss, tried)
    if least is None:
        return f"no number of samples shows a loss of at most {points(max_loss)}"
    if count >= least:
        return None
    which = "the truncation" if tried == 1 else f"one of {tried} truncations"
    return (
        f"to show that {which} loses at most {points(max_loss)} takes "
        f"at least {many(least, 'calibration sample')}, and there are {count:,}"
    )


def _doubt(summaries: Sequence[ArmSummary]) -> str:
    """Say that the untouched model is no better than without the picture, if so; else nothing."""
    own, blind = (
        next((one for one in summaries if one.split == "test" and one.arm.kind == kind), None)
        for kind in (UNTOUCHED, NO_IMAGE)
    )
    if own is None:
        return ""
    if own.score.value == 0:
        return "the untouched model scores 0, so that there is nothing to lose"
    if blind is not None and blind.difference is not None and blind.difference.high >= 0:
        return (
            f"the untouched model's score, {percent(own.score.value)}, is not shown to be higher "
            f"than without the picture ({percent(blind.score.value)})"
        )
    return ""


def many(count: int, what: str) -> str:
    """Return ``"1 sample"``, ``"1,200 samples"``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
