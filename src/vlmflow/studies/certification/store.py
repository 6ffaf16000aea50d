"""What a certificate's study stores: a row per sample, arrays as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from vlmflow.studies.certification.measurements import Measured
from vlmflow.studies.samples import StoredSample, as_text
from vlmflow.studies.store_kind import StoreKind

_SIGNAL = "signal "


@dataclass(frozen=True)
class StoredExits:
    """What leaving at every exit does to one sample, or what a policy did to it."""

    id: str  # :func:`exits_id`
    answer: str | None  # Of the untouched model; None where the sample failed
    failure: str | None  # Why it failed
    plain: str | None  # Answers and tokens as JSON
    arrays: bytes | None


CERTIFY = StoreKind(
    name="certify",
    command="vlmflow certify",
    format=1,
    tables={"sample": StoredSample, "exits": StoredExits},
)


def exits_id(model: str, sample: str, purpose: str, settings: Mapping[str, Any]) -> str:
    """Hash what a measurement depends on; ``model`` and ``sample`` are identities."""
    plain = {"model": model, "sample": sample, "purpose": purpose, "settings": dict(settings)}
    return hashlib.sha256(as_text(plain).encode()).hexdigest()


def pack(measured: Measured) -> tuple[str, bytes]:
    """Put what was measured into JSON and arrays."""
    arrays: dict[str, np.ndarray] = {"states": measured.states, "text": measured.text}
    arrays |= {_SIGNAL + name: values for name, values in measured.signals.items()}
    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    return json.dumps(measured.answers), safetensors.save(contiguous)


def unpack(plain: str, arrays: bytes) -> Measured:
    """Read back what :func:`pack` wrote."""
    values = safetensors.load(arrays)
    return Measured(
        answers=json.loads(plain),
        signals={  # in one order always: of equal signals the first is chosen
            name.removeprefix(_SIGNAL): values[name]
            for name in sorted(values)
            if name.startswith(_SIGNAL)
        },
        states=values["states"],
        text=values["text"],
    )
