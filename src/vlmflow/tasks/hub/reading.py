"""From a row to a question with its reference answers: which column is what, and the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vlmflow.errors import InputError
from vlmflow.tasks.hub.rows import Row
from vlmflow.tasks.metrics.choices import LETTERS

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."


@dataclass(frozen=True)
class RowQuestion:
    """The question of a row as it is put to the model, right answers and options."""

    question: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()


class Reading(Protocol):
    """How rows of a data set are read."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that have to be there."""

    def ask(self, row: Row) -> RowQuestion:
        """Read one row."""


@dataclass(frozen=True)
class Short:
    """A question with a short answer, or with those of several annotators."""

    answer: str = "answer"  # Column of the answer
    several: bool = False  # Whether that is a list
    # Whether the question is written with a capital first letter and small ones after it
    capital: bool = False
    # Words that the question's own prompt ends with, which :data:`SHORT` replaces
    without: str = ""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that have to be there."""
        return frozenset({"question", self.answer})

    def ask(self, row: Row) -> RowQuestion:
        """Read one row."""
        question = row.text("question").strip().removesuffix(self.without)
        question = question.capitalize() if self.capital else question
        answers = row.texts(self.answer) if self.several else (row.text(self.answer),)
        return RowQuestion(question + SHORT, answers)


@dataclass(frozen=True)
class Options:
    """A multiple-choice question."""

    # Columns of the options' texts (empty ones are left out), or one column with a list
    choices: tuple[str, ...]
    answer: str = "answer"  # Column of the right option: its letter, or its number from 0
    hint: str = ""  # Column of a text in front of the question; empty: there is none
    label: str = ""  # What stands in front of the hint

    @property
    def columns(self) -> frozenset[str]:
        """Columns that have to be there."""
        return frozenset({"question", *self.choices, self.answer} | {self.hint} - {""})

    def ask(self, row: Row) -> RowQuestion:
        """Read one row."""
        if len(self.choices) == 1:
            options = row.texts(self.choices[0])
        else:
            options = tuple(filter(None, map(row.optional, self.choices)))
        right = self._letter(row, len(options))
        hint = row.optional(self.hint) if self.hint else ""
        lines = [f"{self.label}{hint}"] if hint else []
        lines += [row.text("question").strip()]
        lines += [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
        return RowQuestion("\n".join(lines) + LETTER, (right,), options)

    def _letter(self, row: Row, count: int) -> str:
        value = row.values[self.answer]
        letters = LETTERS[:count]
        if isinstance(value, str):
            letter = value.strip().upper()
            if len(letter) == 1 and letter in letters:
                return letter
        elif 0 <= row.number(self.answer) < count:
            return letters[row.number(self.answer)]
        raise InputError(
            f"column {self.answer!r} of {row.name} is {value!r}, which is none of the "
            f"{count} options' letters or numbers"
        )


@dataclass(frozen=True)
class Captions:
    """A picture to describe."""

    captions: str  # Column of the reference captions, a list

    @property
    def columns(self) -> frozenset[str]:
        """Columns that have to be there."""
        return frozenset({self.captions})

    def ask(self, row: Row) -> RowQuestion:
        """Read one row."""
        return RowQuestion(CAPTION, row.texts(self.captions))
