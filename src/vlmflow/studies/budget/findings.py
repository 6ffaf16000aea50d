"""What trying budgets found: which is promised, and what each costs beside truncation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.statistics.intervals import Estimate
from vlmflow.studies.budget.settings import BudgetSettings

if TYPE_CHECKING:
    from typing_extensions import Self


Tested = tuple[int, float, bool]
"""Of a budget on the calibration split: answers changed, p-value, whether it is accepted."""


@dataclass(frozen=True)
class Way:
    """The test split answered in one way."""

    tokens: float  # Mean image tokens that the decoder was given, or that stayed
    score: float  # Of the task's metric
    changed: int  # Answers that are not the untouched model's
    gain: Estimate | None  # Score minus the untouched one; None where answers share a score
    seconds: float | None  # Median seconds of a prefill; None: not timed


@dataclass(frozen=True)
class BudgetRow:
    """One budget, and the truncation that costs the decoder as much."""

    name: str
    tokens: int | None  # That no picture may exceed; None where settings were given
    settings: dict[str, Any]  # Of the image processor
    # On the calibration split: answers that changed, and the promise's test. None: not tested,
    # since a larger budget failed.
    changed: int | None
    p_value: float | None
    accepted: bool
    way: Way  # On the test split, as everything below
    truncated: Way | None  # None: nothing was truncated at this cost
    why_not: str  # Why; else empty
    # Score at the budget minus score truncated, and its p-value, corrected for all budgets
    difference: Estimate | None
    difference_p_value: float | None


@dataclass(frozen=True, repr=False)
class Findings:
    """All numbers of a token budget."""

    task: str
    metric: str
    model: dict[str, Any]
    settings: BudgetSettings
    tested: int  # Calibration samples
    measured: int  # Test samples
    untouched: Way
    rows: tuple[BudgetRow, ...]  # From many tokens to few
    failures: tuple[str, ...]  # Samples that could not be answered, with the reason
    versions: dict[str, str]

    @property
    def smallest(self) -> BudgetRow | None:
        """The smallest budget that is promised; None where no budget is."""
        accepted = [row for row in self.rows if row.accepted]
        return accepted[-1] if accepted else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """Rebuild it from :meth:`to_json`."""
        given = dict(plain)
        settings = dict(given["settings"])
        if settings["budgets"] is not None:
            settings["budgets"] = tuple(settings["budgets"])
        given["settings"] = BudgetSettings(**settings)
        given["untouched"] = _way(given["untouched"])
        given["rows"] = tuple(
            BudgetRow(
                **{
                    **row,
                    "way": _way(row["way"]),
                    "truncated": None if row["truncated"] is None else _way(row["truncated"]),
                    "difference": _estimate(row["difference"]),
                }
            )
            for row in given["rows"]
        )
        given["failures"] = tuple(given["failures"])
        return cls(**given)


def _way(plain: dict[str, Any]) -> Way:
    return Way(**{**plain, "gain": _estimate(plain["gain"])})


def _estimate(plain: dict[str, float] | None) -> Estimate | None:
    return None if plain is None else Estimate(**plain)
