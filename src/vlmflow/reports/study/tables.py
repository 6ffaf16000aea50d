"""The tables of a study's page, in words: settings, the task's figures, failures, answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmflow.reports.escape_invisible import shown
from vlmflow.reports.study.sentences import (
    CONTROL_NAMES,
    MISSING,
    NAME_SHOWN,
    changed_by,
    difference_words,
    percent,
    score_words,
    verdict_words,
)
from vlmflow.studies.truncations.arms import UNTOUCHED, label

if TYPE_CHECKING:
    from vlmflow.studies.truncations.arms import Setting
    from vlmflow.studies.truncations.results import Line, Outcome

ANSWERS_SHOWN, FAILURES_SHOWN, TEXT_SHOWN = 50, 100, 300


def setting_rows(outcome: Outcome, split: str) -> list[dict[str, Any]]:
    """One row per setting: truncations by their operations, each with its controls below it."""
    lines = {line.setting.name: line for line in outcome.lines if line.split == split}
    return [
        {
            **_names(setting),
            "chosen": _verdict(outcome, setting),
            "control": setting.kind in CONTROL_NAMES,
            "against": _against(outcome, setting, split),
            **_figures(lines.get(setting.name), len(outcome.samples[split])),
        }
        for setting in _ordered(outcome, lines)
    ]


def figure_table(outcome: Outcome) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the names of the task's own figures, and their values under every setting.

    Empty where the task has no figure but its score.
    """
    lines = {line.setting.name: line for line in outcome.lines if line.split == "test"}
    names = list(dict.fromkeys(name for line in lines.values() for name in line.figures))
    if names == [outcome.task.metric]:
        return [], []
    # MME adds its scores up: a figure that exceeds 1 anywhere is no share.
    shares = {
        name: all(0 <= line.figures.get(name, 0.0) <= 1 for line in lines.values())
        for name in names
    }
    rows = [
        (
            shown(setting.name, NAME_SHOWN),
            [_figure(lines[setting.name].figures.get(name), shares[name]) for name in names],
        )
        for setting in _ordered(outcome, lines)
        if setting.name in lines
    ]
    return [shown(name, NAME_SHOWN) for name in names], rows


def failure_counts(outcome: Outcome) -> list[tuple[str, int, int]]:
    """Count calibration and test samples that each setting failed on, where there are any."""
    rows = []
    for setting in outcome.settings:
        calibration, test = (
            sum(setting.name in one.settings for one in outcome.failures if one.split == split)
            for split in ("calibration", "test")
        )
        if calibration or test:
            rows.append((shown(setting.name, NAME_SHOWN), calibration, test))
    return rows


def failure_rows(outcome: Outcome) -> list[dict[str, str]]:
    """Say which samples failed, under what, and why."""
    return [
        {
            "split": one.split,
            "key": shown(one.key, NAME_SHOWN),
            "settings": f"all {len(one.settings)}"
            if len(one.settings) == len(outcome.settings)
            else shown(", ".join(one.settings), TEXT_SHOWN),
            "reason": shown(one.reason, TEXT_SHOWN),
        }
        for one in outcome.failures[:FAILURES_SHOWN]
    ]


def answered_setting(outcome: Outcome) -> Setting | None:
    """Return the recommended setting, or else the truncation with the smallest possible loss."""
    best = outcome.recommendation
    if best is not None:
        return best.test.setting
    known = [
        line
        for line in outcome.lines
        if line.split == "calibration"
        and line.setting.kind == "truncation"
        and line.difference is not None
    ]
    return max(known, key=_worst).setting if known else None


def answer_rows(outcome: Outcome, setting: Setting) -> list[dict[str, Any]]:
    """Return the first test samples with the answers of the untouched model and of a setting."""
    rows = []
    for sample in outcome.samples["test"][:ANSWERS_SHOWN]:
        own, cut = (outcome.answers[sample.id, name] for name in (UNTOUCHED, setting.name))
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


def settings_table(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what was asked for, of which model, on which machine, with which versions."""
    about = outcome.about
    parts: list[tuple[str, Any]] = [
        *outcome.plan.to_json().items(),
        *((f"model: {name}", value) for name, value in about["model"].items()),
        ("machine", about["machine"]),
        *((f"version of {name}", value) for name, value in about["versions"].items()),
    ]
    return [(shown(name, NAME_SHOWN), shown(_plain(value), 2000)) for name, value in parts]


def _ordered(outcome: Outcome, lines: Mapping[str, Line]) -> list[Setting]:
    """Put truncations in the order of their operations, and controls below their truncation."""
    first = [one for one in outcome.settings if one.kind in (UNTOUCHED, "no image")]
    truncations = [one for one in outcome.settings if one.kind == "truncation"]
    truncations.sort(key=lambda one: -lines[one.name].cost_share if one.name in lines else math.inf)
    found = list(first)
    for truncation in truncations:
        found += [truncation, *(one for one in outcome.settings if one.of == truncation.name)]
    return found + [one for one in outcome.settings if one not in found]


def _names(setting: Setting) -> dict[str, Any]:
    name, policy = shown(setting.name, NAME_SHOWN), setting.truncation
    if setting.kind in CONTROL_NAMES:
        return {"name": CONTROL_NAMES[setting.kind], "more": [name]}
    more = []
    if setting.kind == "truncation" and policy is not None:
        if label(policy) != setting.name:
            more.append(label(policy))
        if policy.is_oracle:
            more.append("looks at the answer: an upper bound, not a method; never recommended")
    return {"name": name, "more": more}


def _verdict(outcome: Outcome, setting: Setting) -> str:
    best = outcome.recommendation
    if best is None or setting.name != best.test.setting.name:
        return ""
    return f"{'★' if best.holds else '✕'} {verdict_words(best)}"


def _against(outcome: Outcome, setting: Setting, split: str) -> list[dict[str, str]]:
    """Say of every control whether the setting beats it, is beaten, or cannot be told from it."""
    rows = []
    for control in outcome.controls(setting):
        found = outcome.against(setting, control, split)
        if found is not None:
            verdict, does = "open", "– not shown to beat"
            if found.low > 0:
                verdict, does = "good", "✓ beats"
            elif found.high < 0:
                verdict, does = "bad", "✕ is beaten by"
            kind = CONTROL_NAMES.get(control.kind, shown(control.name, NAME_SHOWN))
            rows.append({"verdict": verdict, "words": f"{does} {kind}: {changed_by(found)}"})
    return rows


def _figures(line: Line | None, samples: int) -> dict[str, Any]:
    if line is None:
        pairs = dict.fromkeys(("score", "difference", "loyalty"), (MISSING, ""))
        single = dict.fromkeys(("flops", "formula", "tokens", "ms", "share"), MISSING)
        return {**pairs, **single, "count": 0, "failed": samples}
    return {
        "score": score_words(line.score),
        "difference": difference_words(line.difference),
        "loyalty": score_words(line.loyalty),
        "flops": percent(line.flops_share),
        "formula": percent(line.formula_share),
        "tokens": f"{line.image_tokens:,.1f}",
        "ms": MISSING if line.prefill is None else f"{1000 * line.prefill:,.1f}",
        "share": percent(line.prefill_share),
        "count": line.count,
        "failed": line.failed,
    }


def _figure(value: float | None, is_share: bool) -> str:
    if is_share or value is None or not math.isfinite(value):
        return percent(value)
    return f"{value:,.2f}"


def _worst(line: Line) -> float:
    return -1.0 if line.difference is None else line.difference.low


def _plain(value: Any) -> str:
    """Write a setting's value without brackets, quotes and None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return " · ".join(_plain(one) for one in value) or MISSING
    return str(value)
