"""A certificate: findings that show themselves, and a policy that runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.studies.certification.findings import Findings
from vlmflow.studies.certification.sentences import (
    NAME_SHOWN,
    by_group,
    distance_words,
    headline,
    second_line,
)

if TYPE_CHECKING:
    from vlmflow.truncation.run import TruncatedRun


@dataclass(frozen=True, repr=False)
class Certificate(Findings):
    """What :func:`vlmflow.certify` gives: ``vlm.generate(..., policy=certificate)`` runs it."""

    def __call__(self, model: Any) -> AbstractContextManager[TruncatedRun]:
        """Run a model under the policy; see :class:`vlmflow.ExitPolicy`.

        Raises
        ------
        InputError
            If nothing was certified.
        """
        if self.policy is None:
            raise InputError(
                f"nothing was certified for {self.task} on {self.model['name']}, so there is no "
                "policy to run; allow a larger risk or take more calibration samples"
            )
        return self.policy(model)

    def __repr__(self) -> str:
        return f"Certificate({headline(self)})"

    def _repr_html_(self) -> str:
        """Show promise, savings and kinds of question in a notebook."""
        rivals = [
            {
                "name": rival.name,
                "setting": rival.setting,
                "saved": f"{100 * rival.saved:.1f} %",
                "risk": f"{100 * rival.risk:.1f} %",
            }
            for rival in self.rivals
        ]
        groups = [
            {
                **row,
                "group": shown(str(row["group"]), NAME_SHOWN),
                "risk": f"{100 * row['risk']:.1f} %",
            }
            for row in by_group(self.runs)
        ]
        return fragment(
            "vlmflow.studies.certification",
            model=shown(str(self.model["name"]), NAME_SHOWN),
            headline=headline(self),
            second=second_line(self),
            distance=distance_words(self),
            rivals=rivals,
            groups=groups,
        )
