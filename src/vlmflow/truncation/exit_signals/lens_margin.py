"""How far the logit lens puts its first choice before its second."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView


@dataclass(frozen=True)
class LensMargin(ExitSignal):
    """``log p(first) - log p(second)`` of the next token under the logit lens."""

    name = "lens_margin"
    summary = "lead of the next token over the second best under the logit lens"
    source = "logit lens (nostalgebraist 2020)"
    reads = "logits"

    def value(self, seen: ExitView) -> Tensor:
        """Subtract; see :meth:`ExitSignal.value`."""
        best: Tensor = seen.logits.topk(2).values
        return best[0] - best[1]
