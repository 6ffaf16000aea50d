"""What a certificate says, in words that need no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.statistics.risk_control import most_events

if TYPE_CHECKING:
    from vlmflow.studies.certification.findings import Findings, Run

NAME_SHOWN = 120


def promise_words(certificate: Findings) -> str:
    """Return ``"at most 5 % of answers change"``, or what is promised of the score, or both."""
    settings, parts = certificate.settings, []
    if settings.risk is not None:
        parts.append(f"at most {100 * settings.risk:g} % of answers change")
    if settings.loss is not None:
        parts.append(
            f"{shown(certificate.metric, NAME_SHOWN)} falls by at most "
            f"{100 * settings.loss:g} points on average"
        )
    return " and ".join(parts)


def headline(certificate: Findings) -> str:
    """Say the finding in one sentence."""
    task = shown(certificate.task, NAME_SHOWN)
    confidence = f"{100 * certificate.settings.confidence:g} % confidence"
    if certificate.policy is None:
        return f"{task}: no policy could be certified ({promise_words(certificate)}, {confidence})"
    saved = certificate.rival("policy").saved
    return (
        f"{task}: with {confidence}, {promise_words(certificate)}, and "
        f"{100 * saved:.0f} % of the image tokens' work is spared"
    )


def second_line(certificate: Findings) -> str:
    """Say on how many samples, and what came out on new ones."""
    counts = (
        f"{certificate.fitted} samples to fit policies on, {certificate.tested} others to test "
        "them, one question per picture."
    )
    if certificate.policy is None:
        return f"{counts} {why_nothing(certificate)}"
    return f"{counts} {measured_words(certificate.runs)}"


def why_nothing(certificate: Findings) -> str:
    """Say what the safest policy came to, and what it would have taken."""
    safest = certificate.path[0] if certificate.path else None
    settings = certificate.settings
    if safest is not None and safest.accepted:
        return "The policies that passed their test let no sample leave; another signal may tell."
    if safest is None or settings.risk is None:
        return "Even the safest policy did not pass its test; more samples may show more."
    allowed = most_events(certificate.tested, settings.risk, settings.promise.level)
    if allowed is None:
        return (
            f"{certificate.tested} tested samples are too few for this promise, whatever they do."
        )
    changed = round(safest.risk * certificate.tested)
    if changed <= allowed:
        return (
            f"The safest policy changed {changed} answers of those {certificate.tested}, where "
            f"{allowed} are allowed, but its mean loss did not pass the test."
        )
    return (
        f"Even the safest policy changed {changed} answers of those {certificate.tested}, where "
        f"{allowed} are allowed."
    )


def measured_words(runs: Sequence[Run]) -> str:
    """Return ``"On 200 new samples 3 answers changed (1.5 %, 95 % interval 0.5 to 4.3)."``."""
    if not runs:
        return "It was not run on new samples."
    changed = sum(run.changed for run in runs)
    low, high = wilson_interval(changed, len(runs))
    answers = "1 answer" if changed == 1 else f"{changed} answers"
    return (
        f"Run on {len(runs)} new samples, it changed {answers} ({100 * changed / len(runs):.1f} %, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)."
    )


def distance_words(certificate: Findings) -> str:
    """Say how much of what an oracle could spare beyond one layer for all the policy spares."""
    share = certificate.share_of_distance
    constant, oracle = certificate.rival("constant"), certificate.rival("oracle")
    start = (
        f"One layer for everybody, certified alike, spares {100 * constant.saved:.0f} % "
        f"({constant.setting})"
        if constant.setting
        else "No single layer for everybody can be certified"
    )
    text = (
        f"{start}; leaving at each sample's own cliff, which nobody knows beforehand, would spare "
        f"{100 * oracle.saved:.0f} %."
    )
    if certificate.policy is None or share is None:
        return text
    if share <= 0:
        return f"{text} The policy does not pay: it spares no more than that layer."
    return f"{text} The policy goes {100 * share:.0f} % of the way between the two."


def groups_words(certificate: Findings) -> str:
    """Name the kinds of question whose answers change most: a promise is about the whole."""
    rows = by_group(certificate.runs)
    if len(rows) < 2:
        return ""
    worst = max(rows, key=lambda row: float(row["risk"]))
    if not worst["changed"]:
        return "The promise is about all kinds of question together, and not about each."
    return (
        "The promise is about all kinds of question together. By kind, most answers change in "
        f"{shown(str(worst['group']), NAME_SHOWN)}: {worst['changed']} of {worst['n']}."
    )


def by_group(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Tabulate new samples by kind of question."""
    return _by(runs, [run.group or "all" for run in runs], "group")


def by_exit(runs: Sequence[Run], depth: int) -> list[dict[str, Any]]:
    """Tabulate new samples by where they left."""
    names = [f"layer {run.exit_layer}" if run.exit_layer < depth else "never" for run in runs]
    order = sorted(range(len(runs)), key=lambda place: runs[place].exit_layer)
    return _by([runs[place] for place in order], [names[place] for place in order], "exit")


def _by(runs: Sequence[Run], names: Sequence[str], what: str) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(names):
        own = [run for run, other in zip(runs, names, strict=True) if other == name]
        changed = sum(run.changed for run in own)
        low, high = wilson_interval(changed, len(own))
        rows.append(
            {
                what: name,
                "n": len(own),
                "changed": changed,
                "risk": changed / len(own),
                "low": low,
                "high": high,
                "loss": None
                if any(run.loss is None for run in own)
                else sum(run.loss or 0.0 for run in own) / len(own),
            }
        )
    return rows
