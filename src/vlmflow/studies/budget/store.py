"""What a budget's study stores: a row per sample and way to answer it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmflow.studies.samples import StoredSample, as_text
from vlmflow.studies.store_kind import StoreKind


@dataclass(frozen=True)
class BudgetAnswer:
    """An answer, and how many tokens its prompt had."""

    ids: tuple[int, ...]
    text: str
    tokens: int
    length: int  # Tokens of the whole prompt

    def to_json(self) -> str:
        """Return it as the store keeps it."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> BudgetAnswer:
        """Read what :meth:`to_json` wrote."""
        plain = json.loads(text)
        return cls(**{**plain, "ids": tuple(plain["ids"])})


@dataclass(frozen=True)
class StoredAnswer:
    """One sample answered in one way, or why that failed."""

    id: str  # :func:`answer_id`
    answer: str | None  # :class:`BudgetAnswer` as JSON; None where it failed
    failure: str | None


BUDGET = StoreKind(
    name="budget",
    command="vlmflow budget",
    format=1,
    tables={"sample": StoredSample, "answer": StoredAnswer},
)


def answer_id(model: str, sample: str, way: Mapping[str, Any]) -> str:
    """Hash what an answer depends on; ``model`` and ``sample`` are identities."""
    plain = {"model": model, "sample": sample, "way": dict(way)}
    return hashlib.sha256(as_text(plain).encode()).hexdigest()
