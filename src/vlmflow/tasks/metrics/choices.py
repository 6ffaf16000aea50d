"""Multiple choice: which option an answer means (ScienceQA, A-OKVQA, MMBench, SEED-Bench)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric
from vlmflow.tasks.metrics.markup import final_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,;!]*")
"""Nothing but a letter: ``B``, ``b.``, ``(B)``."""

_MENTION = re.compile(
    r"(?:(?<![A-Za-z0-9_'’.])|(?=[(\[]))([(\[]?)([A-Za-z])([)\]]?)(?![A-Za-z0-9_]|['’-]\w|\.\w)"
)
"""A letter by itself, in brackets or not."""

# What stands before a letter, up to it:
_NOUN = r"(?i:\b(?:answer|ans|option|choice|letter|correct)|答案|选项?)"
_VERB = (
    r"(?i:\b(?:choose|chose|pick|select|go[ \t]+(?:with|for)"
    r"|it[ \t]+is|it['’]s|it[ \t]+must[ \t]+be))"
)
_LABELLED = re.compile(r"(?i:\b(?:option|choice|letter))[ \t]+$")
_SAID = re.compile(
    rf"(?:{_NOUN}(?i:[ \t]+(?:here[ \t]+)?(?:is|(?:would|should|must)[ \t]+be)|是|为)?|{_VERB})"
    r"(?:[ \t]*[:=][ \t]*\n?\s*|[ \t]+[-–—][ \t]+|[ \t]*)"
    r"(?i:(?:the[ \t]+)?(?:option|choice|letter)[ \t]+)?$"
)
_REJECTED = re.compile(
    r"(?i:\b(?:not|nor|neither|than|instead[ \t]+of)|n['’]t(?:[ \t]+be)?)"
    r"(?i:[ \t]+(?:the[ \t]+)?(?:option|choice|letter|answer))?[ \t]*$"
)
_IN_ONE_BREATH = re.compile(r"[ \t]*(?:,|/|&|\band\b|\bor\b)[ \t]*(?:(?:and|or|option)[ \t]+)*")

# What stands after it:
_AFTER_LETTER = re.compile(
    r"[ \t]+(?!(?i:because|since|as|for|due|is|was|and|or|which|in|based|but|not)\b)[^\W\d_]"
)
_TAKEN_BACK = re.compile(
    r"[.:,]?[ \t]*(?i:is|are|was|would|seems|does|can)"
    r"(?i:[ \t]*not\b|n['’]t\b|[ \t]+(?:wrong|incorrect|false|ruled[ \t]+out)\b)"
)
_RIGHT = re.compile(
    r"[ \t]+(?i:is|would[ \t]+be|must[ \t]+be|seems)[ \t]+"
    r"(?i:(?:the|most|likely)[ \t]+){0,3}"
    r"(?i:right|correct|best|true|answer|appropriate|accurate|suitable)\b"
)
_MARK = re.compile(
    r"[.:)](?![A-Za-z])|,[ \t]|[ \t]+[-–—][ \t]|[ \t]*$|[ \t]+(?:because|since)\b", re.M
)
_FINAL = re.compile(r"(?i)\bfinal[ \t]*$")
_LINE_START = re.compile(r"\n[ \t]*(?:[-*•][ \t]+)?$")


@dataclass(frozen=True)
class _Mention:
    """A letter that stands for an option, and how the answer speaks of it."""

    letter: str
    is_said: bool  # Announced as the answer: "The answer is B", "B is correct"
    is_final: bool  # In so many words
    is_marked: bool  # In front of a line: "B. blue"
    is_bracketed: bool


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the option an answer means, or None where it means none or several.

    Markup is taken off first (:func:`~vlmflow.tasks.metrics.markup.final_text`). Then, each only
    where those before found nothing: the letter alone; a letter that is announced as the answer; a
    marked letter in front of a line; the text of exactly one option, alone or within the answer; a
    letter in brackets. No guess is made: an article is not a letter, letters that contradict each
    other are none, and one that is rejected ("not B") is not an answer.

    Parameters
    ----------
    answer : str
        What the model said.
    choices : sequence of str
        The options' texts, in the order of their letters.
    """
    letters = LETTERS[: len(choices)]
    text = final_text(answer).strip("\"'“”‘’ ")
    alone = _ALONE.fullmatch(text)
    if alone:
        return alone[1].upper() if alone[1].upper() in letters else None
    mentions = list(_mentions(text))
    said = {mention.letter for mention in mentions if mention.is_said}
    final = {mention.letter for mention in mentions if mention.is_final}
    marked = {mention.letter for mention in mentions if mention.is_marked}
    bracketed = {mention.letter for mention in mentions if mention.is_bracketed}
    if len(marked) == 1 and text.lstrip("([")[:1] in marked:
        # "B. blue" begins with its answer: what is said beside it must not contradict.
        said, marked = said and said | marked, marked | bracketed
    for candidates in (final, said, marked, _named(text, choices), bracketed):
        if candidates:
            (letter, *others) = sorted(candidates)
            return letter if not others and letter in letters else None
    return None


def _mentions(text: str) -> Iterator[_Mention]:
    """Find the letters that stand for options, and are not rejected."""
    was_said, was_marked, end = False, False, 0
    for match in _MENTION.finditer(text):
        opening, letter, closing = match.groups()
        # Nothing that is looked for is longer; whole texts would be searched once per letter.
        before = ("\n" + text)[max(0, match.start() - 99) : match.start() + 1]
        after = text[match.end() : match.end() + 100]
        is_bracketed = bool(opening and closing)
        if closing and not opening:
            after = closing + after
        announced = _SAID.search(before)
        if not is_bracketed:
            labelled = _LABELLED.search(before) and letter.isupper()
            is_word = letter in "AI" and _AFTER_LETTER.match(after) and not labelled
            # A small letter is a word, but for the one that ends what announces it.
            if is_word or (letter.islower() and not (announced and _MARK.match(after))):
                continue
        joined = end and _IN_ONE_BREATH.fullmatch(text[end : match.start()])
        leads = _LINE_START.search(before) and (is_bracketed or closing or _MARK.match(after))
        was_said = bool(announced or (joined and was_said))
        was_marked, end = bool(leads or (joined and was_marked)), match.end()
        if _REJECTED.search(before) or _TAKEN_BACK.match(after):
            was_said = was_marked = False
            continue
        yield _Mention(
            letter.upper(),
            is_said=was_said or bool(_RIGHT.match(after)),
            is_final=bool(announced and _FINAL.search(before[: announced.start()])),
            is_marked=was_marked,
            is_bracketed=is_bracketed,
        )


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
