"""How little of what attention gives to the last token comes from the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView


@dataclass(frozen=True)
class ImageContribution(ExitSignal):
    """``-||sum_image A v|| / ||sum_all A v||``, all heads together, at the layer before.

    Attention to tokens with small values (attention sinks) moves nothing; this counts what moves.
    """

    name = "image_contribution"
    summary = "how little of what attention gives to the last token comes from image tokens"
    source = "norm-based analysis (Kobayashi et al. 2020, arXiv 2004.10102), as a share"
    reads = "attention"

    def value(self, seen: ExitView) -> Tensor:
        """Compare lengths; see :meth:`ExitSignal.value`."""
        share: Tensor = seen.image_contribution.norm() / seen.whole_contribution.norm()
        return -share
