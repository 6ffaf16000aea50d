"""How a study shows itself in a notebook: its finding, and one row per arm."""

from __future__ import annotations

from collections.abc import Sequence

from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.studies.truncations.choice import Choice
from vlmflow.studies.truncations.sentences import (
    NAME_SHOWN,
    difference_words,
    headline,
    percent,
    verdict_words,
)
from vlmflow.studies.truncations.summaries import ArmSummary


def study_html(
    texts: dict[str, str],
    summaries: Sequence[ArmSummary],
    choice: Choice,
    failed: int,
) -> str:
    """Show a study's arms on its test samples.

    ``texts`` are ``task``, ``metric`` and ``model``; they are escaped, as the arms' names are.
    ``failed`` is the number of samples that some arm failed on.
    """
    best, rows = choice.recommendation, []
    for summary in summaries:
        if summary.split == "test":
            value, ends = difference_words(summary.difference)
            rows.append(
                {
                    "name": shown(summary.arm.name, NAME_SHOWN),
                    "is_chosen": best is not None and summary.arm == best.test.arm,
                    "score": percent(summary.score.value),
                    "difference": f"{value} ({ends})" if ends else value,
                    "agreement": percent(summary.agreement.value),
                    "cost": percent(summary.cost_share),
                    "count": summary.count,
                }
            )
    return fragment(
        "vlmflow.studies.truncations",
        headline=headline(texts["task"], choice, summaries),
        model=shown(texts["model"], NAME_SHOWN),
        metric=shown(texts["metric"], NAME_SHOWN),
        verdict="" if best is None else verdict_words(best),
        rows=rows,
        failed=failed,
    )
