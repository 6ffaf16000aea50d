"""A token budget: findings that show themselves."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.studies.budget.findings import Findings
from vlmflow.studies.budget.sentences import NAME_SHOWN, headline, second_line, table_rows


@dataclass(frozen=True, repr=False)
class TokenBudget(Findings):
    """What :func:`vlmflow.budget` gives."""

    def frame(self) -> pd.DataFrame:
        """Tabulate every budget, and the truncation beside it."""
        return pd.DataFrame(table_rows(self))

    def __repr__(self) -> str:
        return f"TokenBudget({headline(self)})"

    def _repr_html_(self) -> str:
        """Show the promise and all budgets in a notebook."""
        return fragment(
            "vlmflow.studies.budget",
            model=shown(str(self.model["name"]), NAME_SHOWN),
            headline=headline(self),
            second=second_line(self),
            rows=table_rows(self),
        )
