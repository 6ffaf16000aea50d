"""How many prompts go together, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vlmflow.errors import InputError
from vlmflow.parameters import check_integer

Batch = int | Literal["auto"]
"""Prompts at once, or ``"auto"``: as many as memory holds."""

MOST = 16
"""Prompts at once, at most, where nobody says how many."""

UNMEASURED = 4
"""Prompts at once where nobody says how many, and the system does not tell its memory."""

_SHARE = 0.6
"""Of the free memory that a batch may take."""


@dataclass(frozen=True)
class BatchSize:
    """How many prompts go together.

    Parameters
    ----------
    most : int
        Prompts at once.
    tokens : int, optional
        Longest prompts of which memory holds so many; a batch with a longer one holds fewer, by the
        square of their ratio (the attention of a model that keeps all of its scores). None: lengths
        do not matter.
    """

    most: int
    tokens: int | None = None

    @classmethod
    def measured(cls, tokens: int, taken: int | None, free: int | None) -> BatchSize:
        """Estimate it from what one prompt of so many tokens took, and from the free memory."""
        if taken is None or free is None:
            return cls(UNMEASURED, tokens)
        count = _SHARE * free / max(taken, 1)
        if count < MOST:
            return cls(max(1, int(count)), tokens)
        # Where memory holds more than anyone is given, longer prompts need not be fewer.
        return cls(MOST, int(tokens * (count / MOST) ** 0.5))

    def halved(self, count: int, tokens: int) -> BatchSize:
        """Return what is left of it when memory has run out for so many prompts of a length."""
        room = self.room(tokens)
        if room < count:  # it was halved already
            return self
        return replace(self, most=max(1, self.most * (count // 2) // room))

    def room(self, length: int) -> int:
        """Return how many prompts of a length go together."""
        if self.tokens is None or length <= self.tokens:
            return self.most
        return max(1, int(self.most * (self.tokens / length) ** 2))

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Put prompts of these lengths into batches of similar ones: their places, each once."""
        batches: list[list[int]] = []
        for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
            if not batches or len(batches[-1]) >= self.room(lengths[place]):
                batches.append([])
            batches[-1].append(place)
        return batches


def check_batch(batch: object) -> Batch:
    """Return a batch size that makes sense.

    Raises
    ------
    InputError
        For anything but ``"auto"`` and whole numbers from 1 on.
    """
    if batch == "auto":
        return "auto"
    try:
        check_integer("batch", batch, least=1)
    except InputError as error:
        raise InputError(f"{error}, or auto") from None
    assert isinstance(batch, int)
    return batch
