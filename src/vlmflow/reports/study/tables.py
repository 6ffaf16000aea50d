"""The tables of a study's page, in words: arms, the task's figures, failures, answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.studies.truncations.arms import UNTOUCHED, label
from vlmflow.studies.truncations.sentences import (
    CONTROL_NAMES,
    MISSING,
    NAME_SHOWN,
    changed_by,
    difference_words,
    percent,
    score_words,
    verdict_words,
)

if TYPE_CHECKING:
    from vlmflow.studies.truncations.arms import Arm
    from vlmflow.studies.truncations.results import StudyResult
    from vlmflow.studies.truncations.summaries import ArmSummary

ANSWERS_SHOWN, FAILURES_SHOWN, TEXT_SHOWN = 50, 100, 300


def arm_rows(study: StudyResult, split: str) -> list[dict[str, Any]]:
    """One row per arm: truncations by their operations, each with its controls below it."""
    summaries = {summary.arm.name: summary for summary in study.summaries if summary.split == split}
    return [
        {
            **_names(arm),
            "chosen": _verdict(study, arm),
            "control": arm.kind in CONTROL_NAMES,
            "against": _against(study, arm, split),
            **_figures(summaries.get(arm.name), len(study.samples[split])),
        }
        for arm in _ordered(study, summaries)
    ]


def figure_table(study: StudyResult) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the names of the task's own figures, and their values under every arm.

    Empty where the task has no figure but its score.
    """
    tests = [summary for summary in study.summaries if summary.split == "test"]
    summaries = {summary.arm.name: summary for summary in tests}
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary.figures))
    if names == [study.task.metric]:
        return [], []
    # MME adds its scores up: a figure that exceeds 1 anywhere is not a share.
    shares = {
        name: all(0 <= summary.figures.get(name, 0.0) <= 1 for summary in summaries.values())
        for name in names
    }
    rows = [
        (
            shown(arm.name, NAME_SHOWN),
            [_figure(summaries[arm.name].figures.get(name), shares[name]) for name in names],
        )
        for arm in _ordered(study, summaries)
        if arm.name in summaries
    ]
    return [shown(name, NAME_SHOWN) for name in names], rows


def failure_counts(study: StudyResult) -> list[tuple[str, int, int]]:
    """Count calibration and test samples that each arm failed on, where there are any."""
    rows = []
    for arm in study.arms:
        calibration, test = (
            sum(arm.name in failure.arms for failure in study.failures if failure.split == split)
            for split in ("calibration", "test")
        )
        if calibration or test:
            rows.append((shown(arm.name, NAME_SHOWN), calibration, test))
    return rows


def failure_rows(study: StudyResult) -> list[dict[str, str]]:
    """Say which samples failed, under what, and why."""
    return [
        {
            "split": failure.split,
            "key": shown(failure.key, NAME_SHOWN),
            "arms": f"all {len(failure.arms)}"
            if len(failure.arms) == len(study.arms)
            else shown(", ".join(failure.arms), TEXT_SHOWN),
            "reason": shown(failure.reason, TEXT_SHOWN),
        }
        for failure in study.failures[:FAILURES_SHOWN]
    ]


def answered_arm(study: StudyResult) -> Arm | None:
    """Return the recommended arm, or else the truncation with the smallest possible loss."""
    best = study.recommendation
    if best is not None:
        return best.test.arm
    candidates = [
        summary
        for summary in study.summaries
        if summary.split == "calibration"
        and summary.arm.kind == "truncation"
        and summary.difference is not None
    ]
    return max(candidates, key=_worst).arm if candidates else None


def answer_rows(study: StudyResult, arm: Arm) -> list[dict[str, Any]]:
    """Return the first test samples with the answers of the untouched model and of an arm."""
    rows = []
    for sample in study.samples["test"][:ANSWERS_SHOWN]:
        own, cut = (study.answers[sample.id, name] for name in (UNTOUCHED, arm.name))
        rows.append(
            {
                "question": shown(sample.question, TEXT_SHOWN),
                "reference": shown(" | ".join(json.loads(sample.refs)), TEXT_SHOWN),
                "own": MISSING if own.answer is None else shown(own.answer, TEXT_SHOWN),
                "cut": MISSING if cut.answer is None else shown(cut.answer, TEXT_SHOWN),
                "mark": "failed"
                if own.answer is None or cut.answer is None
                else "differs"
                if own.answer != cut.answer
                else "",
            }
        )
    return rows


def settings_table(study: StudyResult) -> list[tuple[str, str]]:
    """Return what was asked for, of which model, on which machine, with which versions."""
    about = study.about
    parts: list[tuple[str, Any]] = [
        *study.plan.to_json().items(),
        *((f"model: {name}", value) for name, value in about["model"].items()),
        ("machine", about["machine"]),
        ("samples in a batch at most", about["largest_batch"]),
        *((f"version of {name}", value) for name, value in about["versions"].items()),
    ]
    return [(shown(name, NAME_SHOWN), shown(_plain(value), 2000)) for name, value in parts]


def _ordered(study: StudyResult, summaries: Mapping[str, ArmSummary]) -> list[Arm]:
    """Put truncations in the order of their operations, and controls below their truncation."""
    first = [arm for arm in study.arms if arm.kind in (UNTOUCHED, "no image")]
    truncations = [arm for arm in study.arms if arm.kind == "truncation"]
    truncations.sort(
        key=lambda arm: -summaries[arm.name].cost_share if arm.name in summaries else math.inf
    )
    ordered = list(first)
    for truncation in truncations:
        ordered += [truncation, *(arm for arm in study.arms if arm.of == truncation.name)]
    return ordered + [arm for arm in study.arms if arm not in ordered]


def _names(arm: Arm) -> dict[str, Any]:
    name, policy = shown(arm.name, NAME_SHOWN), arm.truncation
    if arm.kind in CONTROL_NAMES:
        return {"name": CONTROL_NAMES[arm.kind], "more": [name]}
    more = []
    if arm.kind == "truncation" and policy is not None:
        if label(policy) != arm.name:
            more.append(label(policy))
        if policy.is_oracle:
            more.append("looks at the answer: an upper bound, not a method; never recommended")
    return {"name": name, "more": more}


def _verdict(study: StudyResult, arm: Arm) -> str:
    best = study.recommendation
    if best is None or arm.name != best.test.arm.name:
        return ""
    return f"{'★' if best.holds else '✕'} {verdict_words(best)}"


def _against(study: StudyResult, arm: Arm, split: str) -> list[dict[str, str]]:
    """Say of every control whether the arm beats it, is beaten, or these samples cannot say."""
    rows = []
    for control in study.controls(arm):
        difference = study.against(arm, control, split)
        if difference is not None:
            verdict, does = "open", "– not shown to beat"
            if difference.low > 0:
                verdict, does = "good", "✓ beats"
            elif difference.high < 0:
                verdict, does = "bad", "✕ is beaten by"
            kind = CONTROL_NAMES.get(control.kind, shown(control.name, NAME_SHOWN))
            rows.append({"verdict": verdict, "text": f"{does} {kind}: {changed_by(difference)}"})
    return rows


def _figures(summary: ArmSummary | None, samples: int) -> dict[str, Any]:
    if summary is None:
        pairs = dict.fromkeys(("score", "difference", "agreement"), (MISSING, ""))
        single = dict.fromkeys(("flops", "formula", "tokens", "ms", "share"), MISSING)
        return {**pairs, **single, "count": 0, "failed": samples}
    return {
        "score": score_words(summary.score),
        "difference": difference_words(summary.difference),
        "agreement": score_words(summary.agreement),
        "flops": percent(summary.flops_share),
        "formula": percent(summary.formula_share),
        "tokens": f"{summary.image_tokens:,.1f}",
        "ms": MISSING if summary.prefill is None else f"{1000 * summary.prefill:,.1f}",
        "share": percent(summary.prefill_share),
        "count": summary.count,
        "failed": summary.failed,
    }


def _figure(value: float | None, is_share: bool) -> str:
    if is_share or value is None or not math.isfinite(value):
        return percent(value)
    return f"{value:,.2f}"


def _worst(summary: ArmSummary) -> float:
    return -1.0 if summary.difference is None else summary.difference.low


def _plain(value: Any) -> str:
    """Write an arm's value without brackets, quotes and None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " · ".join(_plain(item) for item in value) or MISSING
    return str(value)
