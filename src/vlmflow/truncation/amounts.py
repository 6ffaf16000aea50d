"""How many image tokens stay: a count or a share, which are never the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from vlmflow.errors import InputError


@dataclass(frozen=True)
class Count:
    """A number of tokens, however many the prompt has; users write ``keep=64``."""

    tokens: int

    def of(self, tokens: int) -> int:
        """Return how many of a prompt's image tokens these are.

        Raises
        ------
        InputError
            If the prompt has fewer.
        """
        if self.tokens > tokens:
            raise InputError(
                f"keep={self.tokens}, but the prompt has {tokens} image tokens; keep at most "
                f"{tokens}, or give a fraction such as keep=0.5"
            )
        return self.tokens

    @property
    def plain(self) -> int:
        """The number as users write it."""
        return self.tokens

    def __bool__(self) -> bool:
        return self.tokens > 0

    def __repr__(self) -> str:
        return repr(self.tokens)

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True)
class Share:
    """A share of the image tokens that the prompt came with; users write ``keep=0.5``."""

    share: float

    def of(self, tokens: int) -> int:
        """Return how many of a prompt's image tokens these are, rounded half up."""
        return int(self.share * tokens + 0.5)

    @property
    def plain(self) -> float:
        """The number as users write it."""
        return self.share

    def __bool__(self) -> bool:
        return self.share > 0

    def __repr__(self) -> str:
        return repr(self.share)

    def __str__(self) -> str:
        return f"{100 * self.share:.3g} %"


Amount: TypeAlias = Count | Share
"""False where nothing stays."""


def amount(keep: object) -> Amount:
    """Read what a user keeps: an int is a count, a float a share.

    Raises
    ------
    InputError
        For anything else, a negative number, or a share above 1.
    """
    if isinstance(keep, Count | Share):
        return keep
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not keep >= 0:
        raise InputError(f"keep={keep!r}; give a count (int) or a fraction (float)")
    if isinstance(keep, int):
        return Count(keep)
    if keep > 1:
        raise InputError(f"keep={keep}; a fraction lies between 0.0 and 1.0, a count is an integer")
    return Share(float(keep))
