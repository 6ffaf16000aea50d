"""What a comparison of rankings says in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmflow.escape_invisible import shown
from vlmflow.studies.comparison.rows import BETTER, ComparedRow
from vlmflow.studies.truncations.sentences import NAME_SHOWN, many
from vlmflow.truncation.amounts import Amount
from vlmflow.truncation.rankings.ranking import Ranking

NAMED = 4
REASON_SHOWN = 300


def keep_words(keep: Amount) -> str:
    """Return ``"25 %"`` or ``"64 tokens"``."""
    return str(keep) if isinstance(keep.plain, float) else f"{keep.plain} tokens"


def left_out_words(left_out: Mapping[Ranking, str]) -> list[str]:
    """Say of each ranking that failed on every sample why it is not compared."""
    return [
        f"{shown(ranking.title, NAME_SHOWN)} failed on every sample and is left out: "
        f"{shown(reason, REASON_SHOWN)}"
        for ranking, reason in left_out.items()
    ]


def headline(task: str, layer: int, keeps: Sequence[Amount], rows: Sequence[ComparedRow]) -> str:
    """Say which rankings beat random tokens, and at how many tokens."""
    where = f"{shown(task, NAME_SHOWN)}, image tokens chosen at layer {layer}"
    total = len({row.ranking for row in rows})
    parts = []
    for keep in keeps:
        winners = [
            shown(row.ranking.title, NAME_SHOWN)
            for row in rows
            if row.keep == keep and row.verdict == BETTER and not row.ranking.is_oracle
        ]
        if winners:
            names = ", ".join(winners[:NAMED])
            more = f" and {len(winners) - NAMED} more" if len(winners) > NAMED else ""
            parts.append(f"at {keep_words(keep)}: {names}{more}")
    if not parts:
        return f"{where}: none of {many(total, 'ranking')} is shown to beat random tokens"
    return f"{where}: of {many(total, 'ranking')} those beat random tokens {'; '.join(parts)}"
