"""What a study of faithfulness stores: a row per sample and purpose, arrays as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from vlmflow.studies.faithfulness.measurements import Faithfulness
from vlmflow.studies.samples import StoredSample, as_text
from vlmflow.studies.store_kind import StoreKind

_MEANS = "means "


@dataclass(frozen=True)
class StoredRecord:
    """One measurement of one sample: of all maps, of layers, under drawn weights, or of costs."""

    id: str  # :func:`record_id`
    answer: str | None  # None where it failed
    failure: str | None  # Why it failed
    # As JSON and as arrays; both None where the answer is empty or there is none
    plain: str | None
    arrays: bytes | None


FAITHFULNESS = StoreKind(
    name="faithfulness",
    command="vlmflow faithfulness",
    format=1,
    tables={"sample": StoredSample, "record": StoredRecord},
)


def record_id(model: str, sample: str, purpose: str, settings: Mapping[str, Any]) -> str:
    """Hash what a measurement depends on, to the last digit.

    ``model`` is a :func:`~vlmflow.studies.samples.model_identity`, ``sample`` a stored sample's id.
    """
    plain = {"model": model, "sample": sample, "purpose": purpose, "settings": dict(settings)}
    return hashlib.sha256(as_text(plain).encode()).hexdigest()


def pack(measured: Faithfulness) -> tuple[str, bytes]:
    """Put what was measured of all maps into JSON and arrays."""
    arrays = {_MEANS + name: means for name, means in measured.means.items()}
    arrays |= {"agreement": measured.agreement, "values": measured.values}
    if measured.places is not None:
        arrays["places"] = measured.places
    plain = {
        "replacements": list(measured.means),
        "maps": measured.maps,
        "flags": measured.flags,
        "tokens": measured.tokens,
        "ids": measured.ids,
        "batch": measured.batch,
        "without": None if np.isnan(measured.without) else measured.without,
    }
    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    return json.dumps(plain), safetensors.save(contiguous)


def unpack(plain: str, arrays: bytes) -> Faithfulness:
    """Read back what :func:`pack` wrote, bit by bit."""
    texts, values = json.loads(plain), safetensors.load(arrays)
    return Faithfulness(
        maps=tuple(texts["maps"]),
        flags=tuple(texts["flags"]),
        tokens=tuple(texts["tokens"]),
        ids=tuple(texts["ids"]),
        means={name: values[_MEANS + name] for name in texts["replacements"]},
        agreement=values["agreement"],
        places=values.get("places"),
        without=float("nan") if texts["without"] is None else texts["without"],
        values=values["values"],
        batch=texts.get("batch"),
    )
