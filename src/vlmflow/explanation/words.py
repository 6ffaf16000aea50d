"""What is explained: the whole answer, words of it, or words of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmflow.errors import InputError
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.targets import SCALARS
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import decoded, end_ids
from vlmflow.lvlm.words import Target, run_around, run_of, words_as_answer
from vlmflow.result.explained_words import ANSWER, PROMPT, QUESTION, ExplainedWords

PICTURES_FIRST = (
    "stands before the picture, which the model has not seen when it predicts it; put the picture "
    "(all pictures, where there are several) before the words that are explained"
)


def explained_prompt(
    vlm: LVLM,
    prompt: Prompt,
    question: str | Sequence[Mapping[str, Any]],
    answer: str | Sequence[int] | None,
    options: ExplainOptions,
) -> tuple[Prompt, ExplainedWords | None]:
    """Return a prompt whose answer is what is explained, and which words that is.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        A prompt without an answer.
    question, answer
        What it was prepared from and what is answered to it, as for :meth:`vlmflow.LVLM.explain`;
        no answer where words of the question or prompt are explained.
    options : ExplainOptions
        ``target`` names the words, ``of`` their text.

    Returns
    -------
    prompt : Prompt
        At its end stands, as an answer, what is explained.
    words : ExplainedWords or None
        None: the whole answer.

    Raises
    ------
    InputError
        If there are no such words, several, or words that the model predicts without the picture.
    """
    if options.of != ANSWER:
        if answer is not None:
            raise InputError(
                f"answer={answer!r}, but of={options.of!r} explains words that stand before any "
                "answer; leave one of the two out"
            )
        return _of_prompt(vlm, prompt, question, options)
    assert answer is not None
    answered = vlm.with_answer(prompt, answer)
    if options.target is None:
        return answered, None
    ids = answered.answer_ids
    try:
        run = run_of(options.target, ids, vlm.processor.tokenizer, "the answer")
    except InputError as error:
        raise InputError(f"{error}{_elsewhere(question, options.target)}") from error
    if len(run) == len(ids):
        return answered, None
    first = len(prompt.layout) + run.start
    return _explained(
        vlm, prompt, options.of, answered.answer or "", first, ids[run.start : run.stop],
        ids[: run.start],
    )  # fmt: skip


def _of_prompt(
    vlm: LVLM,
    prompt: Prompt,
    question: str | Sequence[Mapping[str, Any]],
    options: ExplainOptions,
) -> tuple[Prompt, ExplainedWords | None]:
    """Take words of the prompt, all of which stand after the last picture."""
    if vlm.family.reads_question(prompt.inputs):
        raise InputError(
            f"{vlm.name} shows its question to the picture's image tokens, which would give its "
            "words away; explain words of its answer"
        )
    tokenizer, what = vlm.processor.tokenizer, f"the {options.of}"
    ids = prompt.inputs["input_ids"][0].tolist()
    start = int(prompt.layout.image_positions[-1]) + 1
    whole = ""
    first, stop = start, len(ids)
    if options.of == QUESTION:
        whole, (first, stop) = _question(vlm, ids, start, question)
    target = options.target
    if target is None:
        if options.of == PROMPT:
            raise InputError("of='prompt' is not explained as a whole: name some words as target")
        run = range(stop - first)
    else:
        try:
            run = run_of(target, ids[first:stop], tokenizer, what)
        except InputError as error:
            if isinstance(target, str) and run_around([target], ids[:start], tokenizer):
                raise InputError(f"target={target.strip()!r} {PICTURES_FIRST}") from error
            raise
    own = ids[first + run.start : first + run.stop]
    return _explained(vlm, prompt, options.of, whole, first + run.start, own)


def _explained(
    vlm: LVLM,
    prompt: Prompt,
    of: str,
    whole: str,
    first: int,
    ids: Sequence[int],
    before: Sequence[int] = (),
) -> tuple[Prompt, ExplainedWords]:
    tokenizer = vlm.processor.tokenizer
    special = set(ids) & {*tokenizer.all_special_ids, *vlm.image_token_ids}
    if ids[-1] in end_ids(vlm.model, tokenizer):  # an answer would lose it
        special.add(ids[-1])
    if special:
        raise InputError(
            f"the words to be explained hold {decoded(tokenizer, [min(special)])!r}, a special "
            "token that no one says; name others as target"
        )
    text = decoded(tokenizer, ids).strip()
    words = ExplainedWords(of, text, whole, first, tuple(before))
    return words_as_answer(vlm, prompt, first, ids, before), words


def _question(
    vlm: LVLM, ids: Sequence[int], start: int, question: str | Sequence[Mapping[str, Any]]
) -> tuple[str, tuple[int, int]]:
    """Find the question after position ``start``: its text, and from where to where it stands."""
    tokenizer = vlm.processor.tokenizer
    parts = [text for text in texts_of(question) if text.strip()]
    for skipped in range(len(parts)):  # what stands before the picture is not looked at
        run = run_around(parts[skipped:], ids[start:], tokenizer)
        if run is not None:
            first, stop = start + run.start, start + run.stop
            return decoded(tokenizer, ids[first:stop]).strip(), (first, stop)
    if run_around(parts, ids[:start], tokenizer) is not None:
        raise InputError(f"the question {PICTURES_FIRST}")
    raise InputError(
        f"the question is not found in the prompt of {vlm.name}, which writes it in other words; "
        "take words of all text after the picture, with of='prompt'"
    )


def _elsewhere(question: str | Sequence[Mapping[str, Any]], target: Target) -> str:
    """Say where else the words are, or what else was meant by them."""
    if target in SCALARS:
        return f"; the scalar that is explained is scalar={target!r}"
    text = target.strip() if isinstance(target, str) else None
    inside = text is not None and any(text in part for part in texts_of(question))
    return "; it stands in the question: of='question'" * inside


def texts_of(question: str | Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a question, or the texts of a conversation's last turn."""
    if isinstance(question, str):
        return [question]
    content = question[-1]["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part.get("type") == "text"]
