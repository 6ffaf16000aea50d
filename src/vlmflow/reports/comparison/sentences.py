"""What the page of a comparison says in words, beside its headline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.studies.comparison.sentences import left_out_words
from vlmflow.studies.truncations.sentences import NAME_SHOWN, changed_by, many, percent

if TYPE_CHECKING:
    from vlmflow.studies.comparison.comparison import Comparison


def second_line(comparison: Comparison) -> str:
    """Say what was compared with what, and how the tests were corrected."""
    untouched = comparison.untouched
    rows = len(comparison.rows)
    return (
        f"{many(comparison.count, 'test sample')}, answered under every arm; the untouched model "
        f"scores {percent(untouched.value)} ({100 * untouched.low:.1f} to "
        f"{100 * untouched.high:.1f}). Random tokens are the mean of "
        f"{many(comparison.draws, 'draw')}, sample by sample. Differences are paired; whether they "
        f"differ from 0 is tested by flipping signs, and corrected for all {rows} tests (Holm)."
    )


def cost_words(comparison: Comparison) -> str:
    """Say what cost is, and how long it was measured for."""
    if not comparison.is_timed:
        if comparison.is_counted:
            return (
                "Cost is the operations of a prefill with the ranking in it, counted, not timed; "
                "the untouched model's are 1."
            )
        return (
            "Cost is the operations of the decoder by FastV's formula, without the ranking's own, "
            "since this model's cannot be counted; the untouched model's are 1."
        )
    return (
        "Cost is the measured time of a prefill with the ranking in it, arms taking turns, the "
        f"untouched model's being 1; median of {many(comparison.study.plan.timed, 'sample')} on "
        f"{shown(str(comparison.study.about['machine']), NAME_SHOWN)}."
    )


def cautions(comparison: Comparison) -> list[str]:
    """Say what to be wary of."""
    lines = left_out_words(comparison.left_out)
    left_out = len(comparison.study.samples["test"]) - comparison.count
    if left_out:
        lines.append(f"{many(left_out, 'sample')} failed under some arm and are left out.")
    oracles = [shown(r.title, NAME_SHOWN) for r in comparison.rankings if r.is_oracle]
    if oracles:
        lines.append(
            f"{', '.join(oracles)} look at the answer, which no method can: upper bounds, not "
            "methods."
        )
    no_image = next(
        summary
        for summary in comparison.study.summaries
        if summary.arm.kind == "no image" and summary.split == "test"
    )
    lost = no_image.difference
    if lost is not None and lost.high >= 0:
        lines.append(
            "The model is not shown to need its picture on this task (without it the score "
            f"changes by {changed_by(lost)}): rankings cannot be told apart here."
        )
    return lines
