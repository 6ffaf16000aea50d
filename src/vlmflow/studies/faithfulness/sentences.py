"""A study's finding in words, and its main table as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.studies.cliff_layer.sentences import failed_words
from vlmflow.studies.faithfulness.maps import RANDOM
from vlmflow.studies.faithfulness.settings import TOKENS
from vlmflow.trust.variants import PROBABILITY

if TYPE_CHECKING:
    import pandas as pd

    from vlmflow.studies.cliff_layer.measurements import Failure
    from vlmflow.studies.faithfulness.settings import FaithfulnessSettings

Row = dict[str, Any]
"""A row of a study's table of maps."""

NAME_SHOWN = 120

SIGNIFICANT = 0.05
"""Largest adjusted p-value of what is called better or worse than random."""

WAYS = {
    "black": "black covers the picture",
    "blur": "a blurred copy covers the picture",
    "mean": "its mean colour covers the picture",
    TOKENS: "image tokens are removed",
}
"""What each replacement does."""


@dataclass(frozen=True)
class Facts:
    """What sentences need to know of a study."""

    task: str
    metric: str
    score: float  # The model's, by that metric
    settings: FaithfulnessSettings
    labels: Mapping[str, str]  # What every map is called
    has_chosen: bool  # Whether any layer was chosen
    answered: int  # Test samples that were measured
    silent: int  # Those that the model gave no answer to
    failures: tuple[Failure, ...]
    in_sample: tuple[str, ...]  # Signals that were searched for by removing image tokens


def headline(facts: Facts, frame: pd.DataFrame) -> str:
    """Say which signal ranks regions best under the first replacement, and whether by chance."""
    replacement = facts.settings.shown[0]
    row = best_signal(frame, replacement)
    task = shown(facts.task, NAME_SHOWN)
    opening = f"{task}: where {WAYS[replacement]}, "
    if not row["p holm"] <= SIGNIFICANT or row["over random"] <= 0:
        return f"{opening}no map is shown to rank regions better than chance"
    return (
        f"{opening}{facts.labels[row['map']]} ranks regions best: insertion minus deletion "
        f"{with_interval(row, 'difference')}"
    )


def second_line(facts: Facts) -> str:
    """Say on how much that rests, and what was left out."""
    count = facts.answered
    parts = [
        f"{count} sample{'' if count == 1 else 's'}, {facts.metric} {100 * facts.score:.1f} %",
        f"{facts.settings.count} steps",
    ]
    if facts.has_chosen:
        parts.append(f"layers chosen on {facts.settings.calibration} other samples")
    line = ", ".join(parts) + ". "
    if facts.failures:
        line += f"{failed_words(facts.failures)}. "
    if facts.silent:
        line += f"{facts.silent} without an answer. "
    return line + "Layers are counted from 0."


def caveats(facts: Facts, frame: pd.DataFrame) -> list[str]:
    """Say what else has to be known to read the table."""
    said, drawn = [], []
    best = {name: best_signal(frame, name) for name in facts.settings.shown}
    if len({row["map"] for row in best.values()}) > 1:
        parts = [f"{facts.labels[row['map']]} where {WAYS[how]}" for how, row in best.items()]
        said.append(f"Replacements disagree about the best map: {'; '.join(parts)}.")
    for replacement in facts.settings.shown:
        rows = main_table(frame, replacement)
        controls = [row for row in rows if row["kind"] == "control"]
        highest = max(controls, key=lambda row: float(row["difference"]))
        if highest["difference"] >= best[replacement]["difference"]:
            said.append(
                f"Where {WAYS[replacement]}, the control {highest['map']}, which knows nothing of "
                f"the model, ranks regions at least as well as every signal: "
                f"{with_interval(highest, 'difference')}."
            )
        random = next(row for row in controls if row["map"] == RANDOM)
        drawn.append(f"{with_interval(random, 'difference')} where {WAYS[replacement]}")
        searched = [facts.labels[name] for name in facts.in_sample]
        if replacement == TOKENS and searched:
            said.append(
                f"{', '.join(searched)}: searched for by the same removal of image tokens, so "
                "these figures are in-sample."
            )
    said.append(f"Random maps, whose expectation is 0, come to {'; '.join(drawn)}.")
    return said


def chance_words(row: Row) -> str:
    """Compare a map with the random one, after correction: better, worse, or not shown."""
    if row["p holm"] != row["p holm"]:  # the random map itself
        return ""
    if row["p holm"] > SIGNIFICANT:
        return "not shown to differ"
    return "better" if row["over random"] > 0 else "worse"


def with_interval(row: Row, figure: str, digits: int = 3, sign: str = "+") -> str:
    """Return ``"+0.123 (+0.045 to +0.201)"``; empty for a figure that is not known."""
    value, low, high = row[figure], row[f"{figure} low"], row[f"{figure} high"]
    if value != value:
        return ""
    form = f"{sign}.{digits}f"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def main_rows(facts: Facts, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per replacement and map, by mean probability, the best first."""
    shown_rows = []
    for replacement in facts.settings.shown:
        for row in main_table(frame, replacement):
            in_sample = replacement == TOKENS and row["map"] in facts.in_sample
            shown_rows.append(
                {
                    "replacement": replacement,
                    "map": facts.labels[row["map"]] + (" (in-sample)" if in_sample else ""),
                    "is_control": row["kind"] == "control",
                    "insertion": f"{row['insertion']:.3f}",
                    "deletion": f"{row['deletion']:.3f}",
                    "difference": with_interval(row, "difference"),
                    "chance": chance_words(row),
                }
            )
    return shown_rows


def best_signal(frame: pd.DataFrame, replacement: str) -> Row:
    """Row of the signal with the largest difference of mean probability under a replacement."""
    return next(row for row in main_table(frame, replacement) if row["kind"] == "signal")


def main_table(frame: pd.DataFrame, replacement: str) -> list[Row]:
    """Rows of a replacement by mean probability, the largest difference first."""
    own = frame[(frame["replacement"] == replacement) & (frame["score"] == PROBABILITY)]
    rows = own.sort_values("difference", ascending=False).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
