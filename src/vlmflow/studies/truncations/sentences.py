"""A study's figures in words, and its finding in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmflow.escape_invisible import shown
from vlmflow.statistics.intervals import Estimate
from vlmflow.studies.truncations.arms import Arm, label
from vlmflow.studies.truncations.summaries import ArmSummary, Recommendation

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


def headline(
    task: str, best: Recommendation | None, summaries: Sequence[ArmSummary], max_loss: float
) -> str:
    """Say a study's finding in one sentence."""
    task = shown(task, NAME_SHOWN)
    if best is None:
        for split in ("calibration", "test"):
            if not any(summary.split == split for summary in summaries):
                return f"{task}: nothing can be recommended; no {split} sample was answered"
        return (
            f"{task}: no truncation is safe: none keeps the loss below "
            f"{points(max_loss)} with 95 % confidence"
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
