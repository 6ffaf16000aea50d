"""How certain the logit lens is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView


@dataclass(frozen=True)
class LensEntropy(ExitSignal):
    """Minus the entropy, in nats, of the next token under the logit lens."""

    name = "lens_entropy"
    summary = "certainty of the next token under the logit lens (minus its entropy)"
    source = "logit lens (nostalgebraist 2020)"
    reads = "logits"

    def value(self, seen: ExitView) -> Tensor:
        """Sum ``p log p``; see :meth:`ExitSignal.value`."""
        logs = seen.logits.log_softmax(-1)
        return (logs.exp() * logs).sum()
