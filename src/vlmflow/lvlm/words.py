"""Words of a prompt or an answer, by what they read: which run of its tokens spells them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from vlmflow.errors import InputError
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import decoded

Target: TypeAlias = "str | int | range"
"""Words by their text, one token by its number, or a run of them; numbers count from 1."""

_CHOICES, _AROUND = 5, 2


def check_words(target: object) -> None:
    """Raise InputError for what can name no words, whatever text they are looked for in."""
    if isinstance(target, str):
        if not target.strip():
            raise InputError(f"target={target!r} is empty: give the text of some words")
    elif isinstance(target, range):
        if target.step != 1 or len(target) == 0 or target.start < 1:
            raise InputError(
                f"target={target!r} is no run of tokens: they count from 1, one after the other, "
                "as in range(1, 3)"
            )
    elif type(target) is not int or target < 1:
        raise InputError(
            f"target={target!r} names no words: give their text, a token's number (from 1), or a "
            "range of numbers"
        )


def run_of(target: Target, ids: Sequence[int], tokenizer: Any, what: str) -> range:
    """Find the run of consecutive tokens that a target names.

    A text is that of a run if these tokens, and no others, spell it, but for white space at its
    ends. Where whole words spell it, runs inside of longer words do not count.

    Parameters
    ----------
    target : str, int or range
        The text; or numbers of tokens, counted from 1.
    ids : sequence of n int
        The tokens that are looked at.
    tokenizer : object
        Theirs.
    what : str
        What messages call them, as ``"the answer"``.

    Returns
    -------
    range
        Their places among ``ids``, counted from 0.

    Raises
    ------
    InputError
        If no run spells the text, several do, or there are no such numbers; it names the choices.
    """
    check_words(target)
    if not isinstance(target, str):
        numbers = target if isinstance(target, range) else range(target, target + 1)
        if numbers.stop - 1 > len(ids):
            raise InputError(
                f"target={target!r}, but {what} has tokens 1 to {len(ids)}: "
                f"{_listed(ids, tokenizer)}"
            )
        return range(numbers.start - 1, numbers.stop - 1)
    text = target.strip()
    runs = _spelled(text, ids, tokenizer)
    whole = [run for run in runs if _is_whole(run, ids, tokenizer)]
    runs = whole or runs
    if len(runs) == 1:
        return runs[0]
    if runs:
        places = ", ".join(_place(run, ids, tokenizer) for run in runs[:_CHOICES])
        more = f" and {len(runs) - _CHOICES} more" if len(runs) > _CHOICES else ""
        example = range(runs[0].start + 1, runs[0].stop + 1)
        raise InputError(
            f"target={text!r} stands in {what} {len(runs)} times: {places}{more}; give more of the "
            f"words around it, or the number(s) of its tokens: target={_number(example)}"
        )
    around = run_around([text], ids, tokenizer)
    if around is not None:
        spelled = decoded(tokenizer, ids[around.start : around.stop]).strip()
        raise InputError(
            f"target={text!r} begins or ends inside a token of {what}: give the text of whole "
            f"tokens, target={spelled!r}"
        )
    raise InputError(
        f"target={text!r} is not in {what}, whose tokens are {_listed(ids, tokenizer)}"
    )


def run_around(texts: Iterable[str], ids: Sequence[int], tokenizer: Any) -> range | None:
    """Find the shortest run of tokens, as late as can be, that holds some texts in their order.

    White space does not count. None where a text is in none of them.
    """
    wanted = [_dense(text) for text in texts]

    def holds(start: int, stop: int) -> bool:
        text, place = _dense(decoded(tokenizer, ids[start:stop])), 0
        for part in wanted:
            place = text.find(part, place)
            if place < 0:
                return False
            place += len(part)
        return True

    if not holds(0, len(ids)):
        return None
    # The longer a run, the more it holds.
    first = bisect_left(range(len(ids)), True, key=lambda start: not holds(start, len(ids))) - 1
    stop = bisect_left(range(len(ids) + 1), True, key=lambda stop: holds(first, stop))
    return range(first, stop)


def words_as_answer(
    vlm: LVLM, prompt: Prompt, first: int, ids: Sequence[int], before: Sequence[int] = ()
) -> Prompt:
    """Let words of a prompt, or of its answer, stand at its end as what the model has to say.

    What follows them is cut off, so that they are predicted from all that stands before them, the
    model's own text included: a causal model reads no further either way.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        A prompt without an answer.
    first : int
        Position of the first of the words in the expanded sequence, ``before`` included.
    ids : sequence of T int
        The words' tokens.
    before : sequence of int
        Tokens of the answer that stand before them.
    """
    if before:
        prompt = vlm.with_answer(prompt, [*before, *ids])
    layout = prompt.layout
    segments = np.where(layout.segments == Segment.ANSWER, Segment.USER, layout.segments)
    shape = prompt.inputs["input_ids"].shape
    return vlm.with_answer(
        replace(
            prompt,
            inputs={
                name: tensor[:, :first] if tensor.shape == shape else tensor
                for name, tensor in prompt.inputs.items()
            },
            layout=replace(layout, segments=segments[:first], tokens=layout.tokens[:first]),
            answer=None,
        ),
        ids,
    )


def _spelled(text: str, ids: Sequence[int], tokenizer: Any) -> list[range]:
    """Find every run that decodes to exactly this text."""
    runs = []
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            own = decoded(tokenizer, ids[start:stop])
            if own.strip() == text:
                # A blank token in front reads as nothing: the run begins with the words.
                if decoded(tokenizer, ids[start : start + 1]).strip():
                    runs.append(range(start, stop))
                break
            # Bytes of a character that is not whole yet may read as a text of any length.
            if len(own.strip()) > len(text) and "\ufffd" not in own:
                break
    return runs


def _is_whole(run: range, ids: Sequence[int], tokenizer: Any) -> bool:
    """Tell whether a run of tokens is not a part of a longer word."""
    own = decoded(tokenizer, ids[run.start : run.stop]).strip()
    longer = decoded(tokenizer, ids[max(0, run.start - 1) : run.stop + 1])
    place = longer.find(own, len(decoded(tokenizer, ids[max(0, run.start - 1) : run.start])))
    before, after = longer[:place][-1:], longer[place + len(own) :][:1]
    return not ((before.isalnum() and own[0].isalnum()) or (after.isalnum() and own[-1].isalnum()))


def _place(run: range, ids: Sequence[int], tokenizer: Any) -> str:
    around = ids[max(0, run.start - _AROUND) : run.stop + _AROUND]
    return f"{_number(range(run.start + 1, run.stop + 1))} in {decoded(tokenizer, around)!r}"


def _number(numbers: range) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"range({numbers.start}, {numbers.stop})"


def _listed(ids: Sequence[int], tokenizer: Any) -> str:
    texts = [repr(decoded(tokenizer, [token])) for token in ids[:40]]
    return ", ".join(texts) + (f" and {len(ids) - 40} more" if len(ids) > 40 else "")


def _dense(text: str) -> str:
    return "".join(text.split())
