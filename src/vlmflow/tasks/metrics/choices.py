"""Multiple choice: which option an answer means (ScienceQA, A-OKVQA, MMBench, SEED-Bench)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,;!]*")
"""Nothing but a letter: ``B``, ``b.``, ``(B)``."""

_FIRST = re.compile(r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])\s*[.:)](?![A-Za-z]))")
"""A marked letter in front of a text: ``B. blue``, ``(B) blue``, ``B: blue``."""

_ANNOUNCED = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*(?:\(([A-Z])\)|([A-Z])\b(?!['’]))"
)
"""A letter that is announced: ``The answer is B``, ``Answer: (B)``, ``option B``."""

_BRACKETED = re.compile(r"\(([A-Z])\)")


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the option an answer means, or None where it means none or several.

    Tried in this order, each only where those before found nothing: the letter alone; a marked
    letter in front; a letter that is announced as the answer; the text of exactly one option, alone
    or within the answer; a letter in brackets. No guess is made. ``choices`` are the options'
    texts, in the order of their letters.
    """
    letters = LETTERS[: len(choices)]
    text = answer.strip()
    alone = _ALONE.fullmatch(text)
    if alone:
        letter = alone[1].upper()
        return letter if letter in letters else None
    first = _FIRST.match(text)
    if first:
        letter = next(filter(None, first.groups()))
        rivals = set(_BRACKETED.findall(text)) - {letter}
        return letter if letter in letters and not rivals else None
    for candidates in (
        {a or b for a, b in _ANNOUNCED.findall(text)},
        _named(text, choices),
        set(_BRACKETED.findall(text)),
    ):
        if candidates:
            (letter, *others) = sorted(candidates)
            return letter if not others and letter in letters else None
    return None


def _named(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the options whose text is the answer, or stands in it as whole words."""
    answer_words = _words(text)
    options = {letter: _words(choice) for letter, choice in zip(LETTERS, choices, strict=False)}
    same = {letter for letter, option in options.items() if option and option == answer_words}
    if same:
        return same
    inside = {
        letter
        for letter, option in options.items()
        if option and f" {option} " in f" {answer_words} "
    }
    # "a black cat" names the option "black cat", not the option "cat" as well.
    return {
        letter
        for letter in inside
        if not any(
            options[letter] != options[other] and f" {options[letter]} " in f" {options[other]} "
            for other in inside
        )
    }


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


class ChosenOption(Metric):
    """Share of questions where :func:`chosen_letter` is the right one."""

    name = "accuracy"

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer; none or several options are wrong."""
        return float(chosen_letter(answer, sample.choices) in sample.references)
