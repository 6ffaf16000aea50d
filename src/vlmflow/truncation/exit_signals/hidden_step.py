"""How little the last token's state still moves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView


@dataclass(frozen=True)
class HiddenStep(ExitSignal):
    """``-||x_K - x_(K-1)|| / ||x_K||`` of the last token, at the input of layer K."""

    name = "hidden_step"
    summary = "how little the layer before moved the last token's state"
    source = (
        "saturation of hidden states, as in early exits (Schuster et al. 2022, arXiv 2207.07061)"
    )
    reads = "step"

    def value(self, seen: ExitView) -> Tensor:
        """Compare lengths; see :meth:`ExitSignal.value`."""
        length: Tensor = seen.step.norm() / seen.last.norm()
        return -length
