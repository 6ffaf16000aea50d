"""Words that are explained in place of a whole answer: what they are, and how they are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.flow.axes import OF

ANSWER, QUESTION, PROMPT = OF

_SHOWN = 60


@dataclass(frozen=True)
class ExplainedWords:
    """Some words of an answer or of a prompt, which stand at its end as what is explained.

    Parameters
    ----------
    of : str
        The text they belong to: :data:`~vlmflow.flow.axes.OF`.
    text : str
        What they read.
    whole : str
        That text: the answer, or the question.
    first : int
        Position of the first of them in the expanded sequence of the prompt (and answer).
    before : tuple of int
        Ids of the answer's tokens that stand before them; empty for words of a prompt.
    """

    of: str
    text: str
    whole: str
    first: int
    before: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        right = self.of in OF and isinstance(self.text, str) and isinstance(self.whole, str)
        numbers = (self.first, *self.before)
        if not right or not all(type(number) is int and number >= 0 for number in numbers):
            raise InputError(f"{self!r} are no words of {' or '.join(OF)}")

    @property
    def phrase(self) -> str:
        """Name them, as in ``the word “left” of the question``; unseen characters spelled out."""
        if self.is_whole:
            return f"the {self.of}"
        words = "words" if len(self.text.split()) > 1 else "word"
        return f"the {words} “{shown(self.text, _SHOWN)}” of the {self.of}"

    @property
    def is_whole(self) -> bool:
        """Whether they are all of their text."""
        return self.text == self.whole

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {**asdict(self), "before": list(self.before)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ExplainedWords:
        """Rebuild what :meth:`to_json` gave."""
        return cls(**{**plain, "before": tuple(plain["before"])})
