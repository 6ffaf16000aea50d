"""What is asked of a certificate: checked once, and kept with its result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.lvlm.batch_size import Batch, check_batch
from vlmflow.parameters import check_integer, is_number
from vlmflow.statistics.risk_control import least_trials
from vlmflow.studies.promise import Promise
from vlmflow.truncation.amounts import amount
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking

EXITS = 8
"""Exit layers where none are named, evenly spaced."""

FITTED = 0.4
"""Share of the calibration samples on which policies are fitted; the rest tests them."""


@dataclass(frozen=True)
class CertifySettings:
    """How a policy is fitted and tested.

    Raises
    ------
    InputError
        For a setting that is impossible, or a promise that so few samples cannot bear.
    """

    risk: float | None = 0.05  # Largest share of answers that change; None: no such promise
    loss: float | None = None  # Largest mean loss of the task's score; None: no such promise
    confidence: float = 0.9
    calibration: int = 500  # Samples of the calibration split, one per picture
    samples: int = 200  # Of the test split, on which the policy is reported
    layers: tuple[int, ...] | None = None  # Exit layers; None: EXITS of them
    keeps: tuple[float, ...] = (0.0, 0.1)  # Shares of the image tokens kept after an exit, tried
    rank_by: str = DEFAULT  # Which are kept
    timed: int = 8  # Test samples whose prefill is timed
    seed: int = 0
    batch: Batch = "auto"  # Samples at once

    def __post_init__(self) -> None:
        for name, least in (("calibration", 2), ("samples", 1), ("timed", 0), ("seed", 0)):
            check_integer(name, getattr(self, name), least=least)
        check_batch(self.batch)
        _ = self.promise  # refuses what cannot be one
        for name in ("keeps", "layers"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, tuple | list):
                raise InputError(f"{name}={value!r} is not a tuple; write {name}=({value!r},)")
        if not self.keeps:
            raise InputError("keeps=() tries nothing; give for example keeps=(0, 0.1)")
        for keep in self.keeps:
            if not is_number(keep) or not 0 <= keep < 1:
                raise InputError(f"keep={keep!r} is not a share of the image tokens below 1")
        object.__setattr__(self, "keeps", tuple(dict.fromkeys(map(float, self.keeps))))
        if self.layers is not None:
            if not self.layers:
                raise InputError("layers=() are no exits; name some, or None for 8 of them")
            for layer in self.layers:
                check_integer("layer", layer, least=1)
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if as_ranking(self.rank_by).is_oracle:
            raise InputError(f"rank_by={self.rank_by!r} looks at the answer, which is no method")
        self.check_bears(self.calibration, f"calibration={self.calibration}")

    def check_bears(self, samples: int, words: str) -> None:
        """Refuse a risk that so many calibration samples, which ``words`` name, cannot promise.

        Raises
        ------
        InputError
            If not even a policy that changes no answer could pass its test.
        """
        if self.risk is None:
            return
        least_count = least_trials(self.risk, self.promise.level)
        assert least_count is not None
        tested = samples - round(FITTED * samples)
        if tested < least_count:
            raise InputError(
                f"nothing can be certified at risk {self.risk:g} with confidence "
                f"{self.confidence:g} from {words}: {tested} of them test, and even without one "
                f"changed answer it takes {least_count}; give "
                f"calibration={math.ceil(least_count / (1 - FITTED)) + 1} or more"
            )

    @property
    def promise(self) -> Promise:
        """What is promised."""
        return Promise(self.risk, self.loss, self.confidence)

    def exit_layers(self, layers: int) -> tuple[int, ...]:
        """Return the exit layers for a model of so many.

        Raises
        ------
        InputError
            If the model lacks one that was named.
        """
        if self.layers is None:
            steps = min(EXITS, layers - 1)
            return tuple(
                sorted(
                    {round(1 + (layers - 2) * step / max(1, steps - 1)) for step in range(steps)}
                )
            )
        for layer in self.layers:
            if layer >= layers:
                raise InputError(
                    f"layer={layer}, but the model has {layers} decoder layers (0..{layers - 1})"
                )
        return self.layers

    def amounts(self) -> tuple[Any, ...]:
        """Return what stays after an exit as truncations take it."""
        return tuple(amount(keep) if keep else 0 for keep in self.keeps)
