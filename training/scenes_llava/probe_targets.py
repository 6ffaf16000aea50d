"""Words that middle layers of the decoder are to hold, and where: what later tokens can build on.

What holds for an option is asked for at the option's end, the number of a group and the place of an
object where they are named, and the right option's words where they or their letter are to follow.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from vlmflow.scenes.generator import Scene
from vlmflow.scenes.questions import Question, plural, unique_objects

WORDS = 2
"""Words of an option at most."""
FILLERS = ("", "the", "a", "an", "to", "more", "objects", "number")
"""Words of an option that do not tell it from others."""
JUDGED = ("presence", "bigger")
"""Questions whose options are to be looked up one by one."""


@dataclass(frozen=True)
class ProbeTargets:
    """Words of one question, by their places among its tokens."""

    verdicts: dict[int, int]  # Token of what holds for an option, at the option's end
    mentions: dict[int, int]  # Token of the digit that counts a group, where it is named
    # How far to the right and how far down an object stands, of 1, where it is named
    spots: dict[int, tuple[float, float]]
    hints: dict[int, list[int]]  # Tokens of the right option's words, in front of the answer


def probe_targets(
    question: Question, tokens: list[int], scene: Scene, tokenizer: PreTrainedTokenizerFast
) -> ProbeTargets:
    """Find the words of a question written as ``tokens``, up to where its answer begins."""
    return ProbeTargets(
        verdicts=_verdicts(question, tokens, tokenizer),
        mentions=_mentions(question, tokens, scene, tokenizer),
        spots=_spots(tokens, scene, tokenizer),
        hints=_hints(question, tokens, tokenizer),
    )


def _verdicts(
    question: Question, tokens: list[int], tokenizer: PreTrainedTokenizerFast
) -> dict[int, int]:
    if question.kind not in JUDGED or not question.choices:
        return {}
    (line_end,) = tokenizer.encode("\n", add_special_tokens=False)
    # Every option ends its line, and one more line follows.
    ends = [place - 1 for place, token in enumerate(tokens) if token == line_end]
    verdicts = _option_verdicts(question)
    return {
        end: tokenizer.encode(f" {word}", add_special_tokens=False)[0]
        for end, word in zip(ends[-len(verdicts) :], verdicts, strict=True)
    }


def _option_verdicts(question: Question) -> list[str]:
    """Say of every option by itself what the question wants to know of it."""
    right, other = "yes", "no"
    if question.kind == "bigger":
        right, other = ("big", "small") if " big?" in question.text else ("small", "big")
    return [right if choice == question.content else other for choice in question.choices]


def _mentions(
    question: Question, tokens: list[int], scene: Scene, tokenizer: PreTrainedTokenizerFast
) -> dict[int, int]:
    if question.kind not in ("count", "compare"):
        return {}
    numbers = Counter(plural(thing.kind) for thing in scene.objects)
    numbers.update(f"{thing.colour} objects" for thing in scene.objects)
    words = _words(tokens, tokenizer)
    digits = {}
    for place, word in enumerate(words):
        group = f"{words[place - 1]} {word}" if word == "objects" else word
        if group in numbers:
            (digits[place],) = tokenizer.encode(str(numbers[group]), add_special_tokens=False)
    return digits


def _spots(
    tokens: list[int], scene: Scene, tokenizer: PreTrainedTokenizerFast
) -> dict[int, tuple[float, float]]:
    places = {thing.category: scene.place(thing) for thing in unique_objects(scene)}
    pairs = enumerate(itertools.pairwise(_words(tokens, tokenizer)), start=1)
    return {position: places[pair] for position, pair in pairs if pair in places}


def _words(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [str(tokenizer.decode(token)).strip() for token in tokens]


def _hints(
    question: Question, tokens: list[int], tokenizer: PreTrainedTokenizerFast
) -> dict[int, list[int]]:
    if question.content is None:
        return {}
    hint = question.content
    if question.kind == "bigger":  # the right option's words are not known before the options
        hint = _option_verdicts(question)[question.choices.index(question.content)]
    ids = tokenizer.encode(f" {hint}", add_special_tokens=False)
    distinctive = [token for token in ids if str(tokenizer.decode(token)).strip() not in FILLERS]
    return {len(tokens) - 1: distinctive[:WORDS]}
