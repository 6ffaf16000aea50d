"""What a comparison of rankings says in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmflow.escape_invisible import shown
from vlmflow.studies.comparison.rows import BETTER, ComparedRow
from vlmflow.studies.truncations.sentences import NAME_SHOWN, many
from vlmflow.truncation.amounts import Amount
from vlmflow.truncation.rankings.ranking import Ranking

REASON_SHOWN = 300


def keep_words(keep: Amount) -> str:
    """Return ``"25 %"`` or ``"64 tokens"``."""
    return str(keep) if isinstance(keep.plain, float) else f"{keep.plain} tokens"


def left_out_words(left_out: Mapping[Ranking, str]) -> list[str]:
    """Say of each ranking that failed on every sample at some number of tokens why it is not there.

    ``left_out`` says where and why.
    """
    return [
        f"{shown(ranking.title, NAME_SHOWN)} failed on every sample and is left out, "
        f"{shown(reason, REASON_SHOWN)}"
        for ranking, reason in left_out.items()
    ]


def headline(task: str, layer: int, keeps: Sequence[Amount], rows: Sequence[ComparedRow]) -> str:
    """Say how many rankings beat random tokens at each number of tokens, and which by most."""
    where = f"{shown(task, NAME_SHOWN)}, image tokens chosen at layer {layer}"
    methods = [row for row in rows if not row.ranking.is_oracle]
    total = many(len({row.ranking for row in methods}), "ranking")
    winners = [row for row in methods if row.verdict == BETTER]
    if not winners:
        return f"{where}: none of {total} is shown to beat random tokens"
    counts = [
        (sum(row.keep == keep for row in winners) or "none", keep_words(keep)) for keep in keeps
    ]
    (first, most), *rest = counts
    more = "".join(f", {count} at {words}" for count, words in rest)
    best = max(winners, key=lambda row: row.gain.value)
    return (
        f"{where}: of {total} {first} beat random tokens at {most}{more}; furthest above is "
        f"{shown(best.ranking.title, NAME_SHOWN)}, by {100 * best.gain.value:.1f} points at "
        f"{keep_words(best.keep)}"
    )
