"""What is asked of a budget's study: checked once, and kept with its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from vlmflow.errors import InputError, reason
from vlmflow.parameters import check_integer
from vlmflow.statistics.risk_control import least_trials
from vlmflow.studies.promise import Promise
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking

Budget: TypeAlias = int | Mapping[str, Any]
"""Image tokens that a picture may take, or settings of the image processor."""


@dataclass(frozen=True)
class BudgetSettings:
    """How budgets of image tokens are tried.

    Raises
    ------
    InputError
        For a setting that is impossible, or a promise that so few samples cannot bear.
    """

    # From many tokens to few; None: halves of what the largest picture takes, see ``rungs_of``
    budgets: tuple[Budget, ...] | None = None
    risk: float | None = 0.05  # Largest share of answers that change; None: no such promise
    loss: float | None = None  # Largest mean loss of the task's score; None: no such promise
    confidence: float = 0.9
    calibration: int = 200  # Samples of the calibration split, one per picture, that test
    samples: int = 200  # Of the test split, on which everything is reported
    layer: int = 2  # Of the truncations at equal cost
    rank_by: str = DEFAULT  # Which image tokens these keep
    timed: int = 8  # Test samples whose prefill is timed
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("calibration", 1), ("samples", 1), ("layer", 0), ("timed", 0), ("seed", 0)
        ):  # fmt: skip
            check_integer(name, getattr(self, name), least=least)
        if self.budgets is not None:
            object.__setattr__(self, "budgets", _checked_budgets(self.budgets))
        if not isinstance(self.rank_by, str):
            raise InputError(
                f"rank_by={self.rank_by!r} is not a name; give one, of a ranking of your own as "
                "'my_module:MyRanking'"
            )
        if as_ranking(self.rank_by).is_oracle:
            raise InputError(f"rank_by={self.rank_by!r} looks at the answer, which is no method")
        self.check_bears(self.calibration, f"calibration={self.calibration}")

    @property
    def promise(self) -> Promise:
        """What is promised."""
        return Promise(self.risk, self.loss, self.confidence)

    def check_bears(self, samples: int, words: str) -> None:
        """Refuse a risk that so many calibration samples, which ``words`` name, cannot promise.

        Raises
        ------
        InputError
            If not even a budget that changes no answer could pass its test.
        """
        level = self.promise.level
        least = None if self.risk is None else least_trials(self.risk, level)
        if least is not None and samples < least:
            raise InputError(
                f"nothing can be promised at risk {self.risk:g} with confidence "
                f"{self.confidence:g} from {words}: even without one changed answer it takes "
                f"{least}; give calibration={least} or more"
            )


def _checked_budgets(given: Any) -> tuple[Budget, ...]:
    if not isinstance(given, tuple | list) or not given:
        raise InputError(
            f"budgets={given!r} is not a list of budgets; give for example budgets=(256, 128, 64)"
        )
    if all(isinstance(budget, Mapping) for budget in given):
        for budget in given:
            try:
                json.dumps(dict(budget), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"budget={budget!r} holds what a preprocessor_config.json cannot "
                    f"({reason(error)})"
                ) from error
        return tuple(dict(budget) for budget in given)
    for budget in given:
        check_integer("budget", budget, least=1)
    return tuple(sorted(set(given), reverse=True))
