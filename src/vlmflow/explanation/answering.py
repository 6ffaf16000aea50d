"""The answers that are explained: given, or generated for a batch of prompts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.explanation.words import explained_prompt
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.result.explained_words import ANSWER, ExplainedWords

Question = str | Sequence[Mapping[str, Any]]
"""A question, or a conversation that ends with one."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt without an answer, and what it was prepared from."""

    prompt: Prompt
    question: Question
    answer: str | Sequence[int] | None = None  # None: the model answers


@dataclass(frozen=True, eq=False)
class Answered:
    """A prompt at whose end stands, as an answer, what is explained."""

    prompt: Prompt
    question: Question
    words: ExplainedWords | None  # None: the whole answer
    generated: bool  # Whether the model has answered


def answered_together(
    vlm: LVLM, questions: Sequence[Asked], options: ExplainOptions
) -> list[Answered | InputError]:
    """Answer prompts in one left-padded batch, and find what is explained of each.

    Parameters
    ----------
    vlm, questions : LVLM, sequence of Asked
        The model, left exactly as found, and what it is asked.
    options : ExplainOptions
        The longest answer, and which words are explained.

    Returns
    -------
    list of Answered or InputError
        In the order of the prompts. An error is that of one prompt alone: the model ends its answer
        before the first token, or there are no such words.
    """
    generated = _generated(vlm, questions, options)
    answered: list[Answered | InputError] = []
    for place, own in enumerate(questions):
        answer = generated.get(place, own.answer)
        try:
            if place in generated and not answer:
                raise InputError(
                    f"{vlm.name} ends its answer before the first token, so there is nothing to "
                    "explain: pass answer=..."
                )
            prompt, words = explained_prompt(vlm, own.prompt, own.question, answer, options)
        except InputError as error:
            answered.append(error)
        else:
            answered.append(Answered(prompt, own.question, words, place in generated))
    return answered


def _generated(
    vlm: LVLM, questions: Sequence[Asked], options: ExplainOptions
) -> dict[int, tuple[int, ...]]:
    """Generate the answers that are not given, by the places of their prompts."""
    places = [place for place, own in enumerate(questions) if own.answer is None]
    if options.of != ANSWER or not places:
        return {}
    prompts = [questions[place].prompt for place in places]
    answers = vlm.generate_batch(prompts, max_new_tokens=options.max_new_tokens)
    return dict(zip(places, answers, strict=True))
