"""What a budget's study says, in words that need no statistics."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.statistics.risk_control import most_events

if TYPE_CHECKING:
    from vlmflow.studies.budget.findings import BudgetRow, Findings, Way

NAME_SHOWN = 120
ALPHA = 0.05


def promise_words(result: Findings) -> str:
    """Return ``"at most 5 % of answers change"``, or what is promised of the score, or both."""
    settings, parts = result.settings, []
    if settings.risk is not None:
        parts.append(f"at most {100 * settings.risk:g} % of answers change")
    if settings.loss is not None:
        parts.append(
            f"{shown(result.metric, NAME_SHOWN)} falls by at most "
            f"{100 * settings.loss:g} points on average"
        )
    return " and ".join(parts)


def headline(result: Findings) -> str:
    """Say the finding in one sentence."""
    task = shown(result.task, NAME_SHOWN)
    confidence = f"{100 * result.settings.confidence:g} % confidence"
    smallest = result.smallest
    if smallest is None:
        return f"{task}: no smaller budget is safe ({promise_words(result)}, {confidence})"
    name = shown(smallest.name, NAME_SHOWN)
    amount = f"{name} per picture are enough" if smallest.tokens else f"{name} is enough"
    return f"{task}: {amount}: with {confidence}, {promise_words(result)}"


def second_line(result: Findings) -> str:
    """Say on how many samples, what came out on new ones, and what failed first."""
    settings, smallest = result.settings, result.smallest
    text = (
        f"{result.tested} calibration samples tested the budgets from large to small, one question "
        f"per picture; {result.measured} new samples took {result.untouched.tokens:.0f} image "
        "tokens on average untouched"
    )
    if smallest is not None:
        way = smallest.way
        low, high = wilson_interval(way.changed, result.measured)
        text += (
            f" and {way.tokens:.0f} at this budget, where {way.changed} answers changed "
            f"({100 * way.changed / result.measured:.1f} %, 95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f} %)"
        )
    tested = [row for row in result.rows if row.p_value is not None]
    failed = next((row for row in tested if not row.accepted), None)
    if failed is None or settings.risk is None or failed.changed is None:
        return text + "."
    allowed = most_events(result.tested, settings.risk, settings.promise.level)
    name = shown(failed.name, NAME_SHOWN)
    if allowed is None or failed.changed <= allowed:
        return f"{text}. {name} did not pass its test."
    return f"{text}. {name} changed {failed.changed} of the {result.tested}; {allowed} are allowed."


def compared_words(result: Findings) -> str:
    """Say what smaller pictures are worth beside truncation at the decoder's equal cost."""
    settings = result.settings
    place = f"removing tokens of the whole picture from layer {settings.layer} on"
    tests = [row for row in result.rows if row.difference_p_value is not None]
    if not tests:
        reason = next((row.why_not for row in result.rows if row.why_not), "")
        return f"Not compared with {place}: {reason}." if reason else ""
    better = [row for row in tests if _differs(row) and _value(row) > 0]
    worse = [row for row in tests if _differs(row) and _value(row) < 0]
    parts = []
    if better:
        parts.append(f"a smaller picture scores higher at {_names(better)}")
    if worse:
        parts.append(f"truncation scores higher at {_names(worse)}")
    verdict = ", and ".join(parts) if parts else "no difference in score is shown"
    return (
        f"At equal cost in the decoder, compared with {place} ({settings.rank_by}): {verdict} "
        f"({len(tests)} paired test{'' if len(tests) == 1 else 's, corrected together'})."
    )


def what_to_set(row: BudgetRow) -> list[tuple[str, str]]:
    """Say what sets a budget where: program, setting."""
    settings = json.dumps(row.settings)
    lines = [
        ("preprocessor_config.json", settings),
        ("vLLM", f"--mm-processor-kwargs {shlex.quote(settings)}"),
    ]
    if row.tokens is not None:
        lines.append(("llama.cpp", f"--image-max-tokens {row.tokens}"))
    return lines


def table_rows(result: Findings) -> list[dict[str, Any]]:
    """List every way that the test split was answered, as plain numbers."""
    rows = [{"budget": "untouched", "way": "untouched", **_plain(result.untouched)}]
    for row in result.rows:
        own = {
            "accepted": row.accepted,
            "p_value": row.p_value,
            "calibration_changed": row.changed,
        }
        rows.append({"budget": row.name, "way": "smaller picture", **_plain(row.way), **own})
        if row.truncated is not None:
            apart = {
                "difference": None if row.difference is None else row.difference.value,
                "difference_low": None if row.difference is None else row.difference.low,
                "difference_high": None if row.difference is None else row.difference.high,
                "difference_p_value": row.difference_p_value,
            }
            rows.append({"budget": row.name, "way": "truncated", **_plain(row.truncated), **apart})
    return rows


def _plain(way: Way) -> dict[str, Any]:
    return {
        "tokens": way.tokens,
        "score": way.score,
        "changed": way.changed,
        "gain": None if way.gain is None else way.gain.value,
        "gain_low": None if way.gain is None else way.gain.low,
        "gain_high": None if way.gain is None else way.gain.high,
        "seconds": way.seconds,
    }


def _differs(row: BudgetRow) -> bool:
    return row.difference_p_value is not None and row.difference_p_value < ALPHA


def _value(row: BudgetRow) -> float:
    assert row.difference is not None
    return row.difference.value


def _names(rows: list[BudgetRow]) -> str:
    return ", ".join(shown(row.name, NAME_SHOWN) for row in rows)
