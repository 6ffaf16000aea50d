"""The words of an answer, and which of them name something: a closed list says which do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a an the this that these those it its he him his she her hers they them their theirs we us our
    you your i me my mine who whom whose which what
    is are was were be been being am do does did done have has had having will would shall should
    can could may might must
    of in on at by for to from with without within into onto upon over under above below between
    through about as than near behind beside after before during against along across around off out
    up down
    and or but nor so yet if because while when where how why there here not
    also both each either neither some any all
    """,
    )
)
"""English articles, pronouns, auxiliaries, prepositions, conjunctions and particles."""

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class Word:
    """One word of an answer."""

    text: str
    tokens: tuple[int, ...]  # Which of the answer's tokens, counted from 0, write it
    is_function: bool  # Whether it is one of :data:`FUNCTION_WORDS`; all others are object words


def words_of(tokens: Sequence[str]) -> list[Word]:
    """Split an answer into words.

    Parameters
    ----------
    tokens : sequence of T str
        Texts of its tokens; joined they are the answer.
    """
    ends = [0]
    for token in tokens:
        ends.append(ends[-1] + len(token))
    words = []
    for match in _WORD.finditer("".join(tokens)):
        own = tuple(
            number
            for number in range(len(tokens))
            if ends[number] < match.end() and ends[number + 1] > match.start()
        )
        words.append(Word(match[0], own, match[0].lower() in FUNCTION_WORDS))
    return words
