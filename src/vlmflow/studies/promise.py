"""A promise about a task's answers, and the test whether samples bear it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.parameters import is_number
from vlmflow.statistics.risk_control import betting_p_value, binomial_p_value


@dataclass(frozen=True)
class Promise:
    """What is to be promised: that each risk is at most so much, with this confidence.

    Raises
    ------
    InputError
        If nothing is promised, or a number is not a share.
    """

    risk: float | None  # Share of answers that change; None: nothing is promised of it
    loss: float | None  # Mean loss of the task's score; None: nothing
    confidence: float

    def __post_init__(self) -> None:
        if self.risk is None and self.loss is None:
            raise InputError("risk=None and loss=None promise nothing; give one of them or both")
        for name, value in vars(self).items():
            if value is not None and not (is_number(value) and 0 < value < 1):
                raise InputError(f"{name}={value!r} is not a share between 0 and 1")

    @property
    def level(self) -> float:
        """Error that is allowed."""
        return 1 - self.confidence

    def p_value(
        self, changed: npt.NDArray[np.bool_], losses: npt.NDArray[np.float64] | None
    ) -> float:
        """Test both risks of one policy: the larger p-value, since both have to pass.

        Parameters
        ----------
        changed : (n,) bool
            Whether the policy changes the answer of each sample.
        losses : (n,) float64 or None
            Score that each loses by it; read where a loss is promised.
        """
        values = []
        if self.risk is not None:
            values.append(binomial_p_value(int(changed.sum()), len(changed), self.risk))
        if self.loss is not None:
            assert losses is not None
            values.append(betting_p_value(losses, self.loss, self.level))
        return max(values)
