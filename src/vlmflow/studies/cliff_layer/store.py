"""What a cliff study stores: one row per sample, with its curve and signals as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from vlmflow.lvlm.batch_size import Batch
from vlmflow.removal.answer_curve import AnswerCurve
from vlmflow.removal.curve import RemovalCurve
from vlmflow.removal.knockout import Knockout
from vlmflow.studies.cliff_layer.measurements import SIGNALS, SampleMeasurement
from vlmflow.studies.samples import StoredSample, as_text
from vlmflow.studies.store_kind import StoreKind
from vlmflow.tasks.base import TaskSample
from vlmflow.truncation.amounts import Count

_PARTS = ("onwards", "single")
"""Of an attention knockout; its arrays' names begin with them, where it was measured."""

_ARRAYS = ("kl", "agrees", "ends_alike", "logprob", "untouched_logprob")


@dataclass(frozen=True)
class StoredMeasurement:
    """What was measured of one sample."""

    id: str  # :func:`measurement_id`
    answer: str | None  # None where it failed
    failure: str | None  # Why it failed
    # Tokens of the answer as a JSON list, and arrays; None where the answer is empty or there is
    # none
    tokens: str | None
    arrays: bytes | None


CLIFF = StoreKind(
    name="cliff",
    command="vlmflow cliff",
    format=1,
    tables={"sample": StoredSample, "measurement": StoredMeasurement},
)


def measurement_id(model: str, sample: str, batch: Sequence[str], max_new_tokens: int) -> str:
    """Hash what a measurement depends on, to the last digit.

    ``model`` is a :func:`~vlmflow.studies.samples.model_identity`; ``batch`` are the ids of all
    samples that were measured together, ``sample`` is one of them.
    """
    plain = {"model": model, "sample": sample, "batch": list(batch), "length": max_new_tokens}
    return hashlib.sha256(as_text(plain).encode()).hexdigest()


def plan_name(model: str, samples: Sequence[str], batch: Batch) -> str:
    """Name what a store keeps under it: which of some samples are measured together."""
    plain = {"model": model, "samples": list(samples), "batch": batch}
    return f"batches {hashlib.sha256(as_text(plain).encode()).hexdigest()}"


def stored_measurement(name: str, measurement: SampleMeasurement) -> StoredMeasurement:
    """Make a measurement a row of this id."""
    curve = measurement.curve
    answer = None if measurement.failure is not None else measurement.answer
    if curve is None:
        return StoredMeasurement(name, answer, measurement.failure, None, None)
    arrays = {array: getattr(curve, array) for array in _ARRAYS}
    if measurement.knockout is not None:
        for part in _PARTS:
            own = getattr(measurement.knockout, part)
            arrays |= {f"{part} {array}": getattr(own, array) for array in _ARRAYS}
    arrays |= {"layers": np.array(curve.layers, dtype=np.int64), **measurement.signals}
    return StoredMeasurement(
        id=name,
        answer=answer,
        failure=None,
        tokens=json.dumps(curve.answer_tokens),
        arrays=safetensors.save(
            {array: np.ascontiguousarray(values) for array, values in arrays.items()}
        ),
    )


def sample_measurement(sample: TaskSample, stored: StoredMeasurement) -> SampleMeasurement:
    """Read a row back, bit by bit."""
    if stored.arrays is None or stored.tokens is None:
        return SampleMeasurement(sample, stored.answer or "", failure=stored.failure)
    arrays = safetensors.load(stored.arrays)
    of_answer: dict[str, Any] = {
        "layers": tuple(arrays["layers"].tolist()),
        "answer_tokens": tuple(json.loads(stored.tokens)),
    }
    own: dict[str, Any] = {array: arrays[array] for array in _ARRAYS}
    curve = RemovalCurve(keep=Count(0), ranking=None, **of_answer, **own)
    knockout = None
    if f"{_PARTS[0]} {_ARRAYS[0]}" in arrays:
        cut_off: list[dict[str, Any]] = [
            {array: arrays[f"{part} {array}"] for array in _ARRAYS} for part in _PARTS
        ]
        knockout = Knockout(*(AnswerCurve(**of_answer, **part) for part in cut_off))
    signals = {signal: arrays[signal] for signal in SIGNALS}
    return SampleMeasurement(
        sample, stored.answer or "", curve=curve, signals=signals, knockout=knockout
    )
