"""What is asked of a cliff study: checked once, and kept with its result."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.errors import InputError
from vlmflow.lvlm.batch_size import Batch, check_batch
from vlmflow.parameters import check_integer

TOLERANCE, CHANGED = 0.1, 0.05
"""Defaults: mean KL in nats that removal may cost, and the share of answers it may change."""


@dataclass(frozen=True)
class CliffSettings:
    """How a task's cliff layer is measured.

    Raises
    ------
    InputError
        For numbers that are impossible.
    """

    # Samples of the test split, and of the calibration split, on which thresholds of the cheap
    # signals are chosen
    samples: int = 200
    calibration: int = 100
    # Mean KL in nats, and share of changed answers, that removal may cost
    tolerance: float = TOLERANCE
    changed: float = CHANGED
    batch: Batch = "auto"  # Samples at once
    # Draws and seed of the bootstraps
    draws: int = 2000
    seed: int = 0
    knockout: bool = False  # Measure an attention knockout of every test sample, too

    def __post_init__(self) -> None:
        check_batch(self.batch)
        for name in ("samples", "calibration", "draws"):
            check_integer(name, getattr(self, name), least=1)
        check_integer("seed", self.seed)
        for name in ("tolerance", "changed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}, but a loss is tolerated from 0 on")
