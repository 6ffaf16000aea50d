"""How many image tokens stay: a count or a share, which are never the same thing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from vlmflow.errors import InputError


@dataclass(frozen=True, repr=False)
class Amount(ABC):
    """How many image tokens stay, as users write it; false where none does."""

    plain: int | float

    @abstractmethod
    def of(self, tokens: int) -> int:
        """Return how many of a prompt's image tokens these are."""

    def __bool__(self) -> bool:
        return self.plain > 0

    def __repr__(self) -> str:
        return repr(self.plain)


class Count(Amount):
    """A number of tokens, however many the prompt has; users write ``keep=64``."""

    def of(self, tokens: int) -> int:
        """Return the number; raise InputError if the prompt has fewer tokens."""
        if self.plain > tokens:
            raise InputError(
                f"keep={self.plain}, but the prompt has {tokens} image tokens; keep at most "
                f"{tokens}, or give a fraction such as keep=0.5"
            )
        return int(self.plain)


class Share(Amount):
    """A share of the image tokens that the prompt came with; users write ``keep=0.5``."""

    def of(self, tokens: int) -> int:
        """Return how many of a prompt's image tokens these are, rounded half up."""
        return int(self.plain * tokens + 0.5)

    def __str__(self) -> str:
        return f"{100 * self.plain:.3g} %"


def amount(keep: object) -> Amount:
    """Read what a user keeps: an int is a count, a float a share.

    Raises
    ------
    InputError
        For anything else, a negative number, or a share above 1.
    """
    if isinstance(keep, Amount):
        return keep
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not keep >= 0:
        raise InputError(f"keep={keep!r}; give a count (int) or a fraction (float)")
    if isinstance(keep, int):
        return Count(keep)
    if keep > 1:
        raise InputError(f"keep={keep}; a fraction lies between 0.0 and 1.0, a count is an integer")
    return Share(float(keep))
