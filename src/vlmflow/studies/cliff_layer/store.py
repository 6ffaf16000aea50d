"""What a cliff study stores: one row per sample, with its curve and signals as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import numpy as safetensors

from vlmflow.removal.curve import RemovalCurve
from vlmflow.studies.cliff_layer.measurements import SIGNALS, SampleMeasurement
from vlmflow.studies.samples import StoredSample, as_text
from vlmflow.studies.store_kind import StoreKind
from vlmflow.tasks.base import TaskSample
from vlmflow.truncation.amounts import Count

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


def stored_measurement(name: str, measurement: SampleMeasurement) -> StoredMeasurement:
    """Make a measurement a row of this id."""
    curve = measurement.curve
    answer = None if measurement.failure is not None else measurement.answer
    if curve is None:
        return StoredMeasurement(name, answer, measurement.failure, None, None)
    arrays = {array: getattr(curve, array) for array in _ARRAYS}
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
    curve = RemovalCurve(
        layers=tuple(arrays["layers"].tolist()),
        keep=Count(0),
        ranking=None,
        answer_tokens=tuple(json.loads(stored.tokens)),
        **{array: arrays[array] for array in _ARRAYS},
    )
    signals = {signal: arrays[signal] for signal in SIGNALS}
    return SampleMeasurement(sample, stored.answer or "", curve=curve, signals=signals)
