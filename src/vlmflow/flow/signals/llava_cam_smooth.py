"""LLaVA-CAM, mean over noisy pictures (paper eq. 4-5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmflow.errors import InputError
from vlmflow.flow.signals.llava_cam import LlavaCam
from vlmflow.flow.signals.other_inputs import Noise
from vlmflow.parameters import check_integer


@dataclass(frozen=True)
class LlavaCamSmooth(LlavaCam):
    """``(1/N) sum_i Heat(x + N(0, deviation^2))``.

    Costs the passes of N further explanations, a few to a batch.

    Parameters
    ----------
    hook : str
        As in :class:`~vlmflow.flow.signals.llava_cam.LlavaCam`.
    copies : int
        ``N``, the number of noisy pictures.
    deviation : float
        Standard deviation of the noise in normalised pixel values.
    seed : int
        Of the noise, from 0 on.
    """

    name = "llava_cam_smooth"
    summary = "LLaVA-CAM averaged over noisy copies of the picture"
    label = "LLaVA-CAM, smoothed"
    source = "From Redundancy to Relevance (NAACL 2025), eq. 1-5"

    copies: int = 16
    deviation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("copies", self.copies, least=1)
        if not isinstance(self.deviation, int | float) or not 0 <= self.deviation < math.inf:
            raise InputError(
                f"deviation={self.deviation!r}, but a standard deviation is a number from 0 on"
            )
        check_integer("seed", self.seed)

    @property
    def noise(self) -> Noise:
        """The noisy pictures; see :attr:`Signal.noise`."""
        return Noise(self.copies, self.deviation, self.seed)
