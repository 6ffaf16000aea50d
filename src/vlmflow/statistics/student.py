"""Student's t distribution."""

from __future__ import annotations

import math

import numpy as np


def t_quantile(share: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, for shares above one half."""
    lowest, highest = 0.0, 1000.0
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    while highest - lowest > 1e-6:
        middle = (lowest + highest) / 2
        x = (np.arange(4000) + 0.5) * middle / 4000
        below = 0.5 + scale * middle * float(((1 + x**2 / degrees) ** (-(degrees + 1) / 2)).mean())
        lowest, highest = (middle, highest) if below < share else (lowest, middle)
    return lowest
