"""The score of a fixed answer about other pictures, or fewer image tokens: its tokens' chances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.chat import Visual
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.words import words_as_answer
from vlmflow.removal.chosen import logits_without
from vlmflow.result.explained_words import ExplainedWords
from vlmflow.trust.made import Made
from vlmflow.trust.passes import Passes

Question = str | Sequence[Mapping[str, Any]]


def token_probabilities(
    vlm: LVLM,
    shown: Sequence[Visual],
    others: Sequence[Visual],
    place: int,
    question: Question,
    answer: Sequence[int],
    *,
    words: ExplainedWords | None = None,
    passes: Passes,
    on_batch: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the probability of every token of an answer, under each of some pictures or videos.

    Parameters
    ----------
    vlm : LVLM
        The model; left as found.
    shown : sequence of n PIL.Image or Video
        What takes the place of number ``place`` among ``others``, all that the question is about.
    question, answer
        As for :meth:`vlmflow.LVLM.prepare`; the answer as T token ids.
    words : ExplainedWords, optional
        Whose tokens the answer's are, where they are not the whole answer's.
    passes : Passes
        How many pictures go to a forward pass.
    on_batch : callable, optional
        Called with the number of pictures done.

    Returns
    -------
    (n, T) float64
    """
    sets = Made(len(shown), lambda n: [*others[:place], shown[n], *others[place + 1 :]])
    scores = answer_logprobs(
        vlm, sets, question, answer, words=words, passes=passes, on_batch=on_batch
    )
    return np.exp(scores)


def answer_logprobs(
    vlm: LVLM,
    sets: Sequence[Sequence[Visual]],
    question: Question,
    answer: Sequence[int],
    *,
    words: ExplainedWords | None = None,
    passes: Passes,
    on_batch: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the log-probability of every token of an answer about each of some sets of visuals.

    Parameters are those of :func:`token_probabilities`, but for ``sets``: of n times all
    pictures and videos of the question.

    Returns
    -------
    (n, T) float64
    """
    ids = torch.tensor(answer)

    def prepared(number: int) -> Prompt:
        prompt = vlm.prepare(sets[number], question)
        if words is None:
            return vlm.with_answer(prompt, answer)
        return words_as_answer(vlm, prompt, words.first, answer, words.before)

    first = prepared(0)  # says how long all of them are

    def scored(numbers: range) -> npt.NDArray[np.float64]:
        prompts = [first if number == 0 else prepared(number) for number in numbers]
        inputs, layouts = collate(prompts, pad_id(vlm.processor.tokenizer))
        at = torch.from_numpy(layouts[0].answer_rows).to(vlm.device)  # at the end of every row
        with as_found(vlm.model), torch.no_grad():
            logits = logits_at(vlm.model, inputs, at)
        return _own(logits, ids)

    rows = []
    for numbers, scores in passes.over(len(sets), len(first.layout), scored):
        rows.append(scores)
        if on_batch is not None:
            on_batch(numbers.stop)
    return np.concatenate(rows)


def logprobs_with_tokens(
    vlm: LVLM, prompt: Prompt, shown: npt.NDArray[np.bool_], passes: Passes
) -> npt.NDArray[np.float64]:
    """Return the log-probability of an answer's tokens where some of its image tokens are left.

    The others are removed before the first layer; those that stay keep their positions.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model; left as found. The prompt carries its answer of T tokens.
    shown : (n, P) bool
        Image tokens that are left.
    passes : Passes
        How many subsets go to a forward pass, which runs the untouched prompt as well.

    Returns
    -------
    (n, T) float64
    """
    ids = torch.tensor(prompt.answer_ids)

    def scored(numbers: range) -> npt.NDArray[np.float64]:
        removed = torch.from_numpy(~shown[numbers.start : numbers.stop])
        return _own(logits_without(vlm, prompt, removed)[1:], ids)

    scores = [own for _, own in passes.over(len(shown), len(prompt.layout), scored)]
    return np.concatenate(scores)


def _own(logits: Tensor, ids: Tensor) -> npt.NDArray[np.float64]:
    """Log-probabilities (n, T) of the answer's own tokens; logits (n, T, vocabulary)."""
    scores = logits.float().log_softmax(-1)
    own = scores.gather(2, ids.to(scores.device).expand(len(scores), -1)[..., None])[..., 0]
    values: npt.NDArray[np.float64] = own.double().cpu().numpy()
    return values
