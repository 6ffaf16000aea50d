"""Samples under every arm of a study, with all that the arms share done once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.tokens import answer_text
from vlmflow.studies.batching.ahead import Prepared
from vlmflow.studies.samples import StoredSample, failure_reason
from vlmflow.studies.truncations.arms import Arm, mean_share
from vlmflow.studies.truncations.down_sample import down_sampled, grows
from vlmflow.studies.truncations.store import StoredResult
from vlmflow.tasks.base import TaskSample
from vlmflow.truncation.flops import DecoderShape, PrefillCost, formula_share, prefill_cost
from vlmflow.truncation.shared_answers import Answers, shared_answers
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


@dataclass(frozen=True)
class WorkItem:
    """One arm of one sample that is still to be answered, and the id its result will have."""

    arm: Arm
    id: str


@dataclass(frozen=True)
class Piece:
    """One sample and what is still to be answered of it."""

    sample: TaskSample
    stored: StoredSample
    items: tuple[WorkItem, ...]


def answer_samples(
    vlm: LVLM,
    batch: Sequence[Prepared],
    items: Sequence[Sequence[WorkItem]],
    max_new_tokens: int,
) -> list[list[StoredResult]]:
    """Answer samples under the same arms, all in one batch; results come in the order of ``items``.

    Whatever goes wrong with a sample that is alone, or with one of its arms, becomes a failed
    result with its reason: a study of thousands of samples must not end at one broken picture.

    Raises
    ------
    Exception
        Whatever goes wrong with one of several.
    """
    if len(batch) == 1:
        return [_answer_alone(vlm, batch[0], items[0], max_new_tokens)]
    prompts = [prepared.ready for prepared in batch]
    policies = [item.arm.truncation for item in items[0] if not item.arm.is_down_sampled]
    cut = [policy for policy in policies if policy is not None]
    answers: list[Answers] = [[] for _ in batch]
    if policies:
        answers = shared_answers(vlm, prompts, cut, max_new_tokens=max_new_tokens)
    results = []
    for prepared, prompt, own, ids in zip(batch, prompts, items, answers, strict=True):
        whole = [item for item in own if not item.arm.is_down_sampled]
        smaller = [item for item in own if item.arm.is_down_sampled]
        of_sample = _results(vlm, prompt, whole, ids)
        of_sample |= _smaller_pictures(vlm, prompt, prepared.sample, smaller, max_new_tokens)
        results.append([of_sample[item.id] for item in own])
    return results


def failed_results(items: Sequence[WorkItem], error: Exception) -> list[StoredResult]:
    """Say of each item that it failed, and why."""
    return [_failed(item, error) for item in items]


def _answer_alone(
    vlm: LVLM, prepared: Prepared, items: Sequence[WorkItem], max_new_tokens: int
) -> list[StoredResult]:
    try:
        prompt = prepared.ready
    except Exception as error:
        return failed_results(items, error)
    results: dict[str, StoredResult] = {}
    whole = [item for item in items if not item.arm.is_down_sampled]
    if whole:
        results |= _whole_pictures(vlm, prompt, whole, max_new_tokens)
    smaller = [item for item in items if item.arm.is_down_sampled]
    results |= _smaller_pictures(vlm, prompt, prepared.sample, smaller, max_new_tokens)
    return [results[item.id] for item in items]


def _whole_pictures(
    vlm: LVLM,
    prompt: Prompt,
    items: Sequence[WorkItem],
    max_new_tokens: int,
    *,
    is_part: bool = False,
) -> dict[str, StoredResult]:
    """Answer the arms that show the picture as it is; one that fails is looked for."""
    cut = [item.arm.truncation for item in items if item.arm.truncation is not None]
    try:
        (answers,) = shared_answers(vlm, [prompt], cut, max_new_tokens=max_new_tokens)
        return _results(vlm, prompt, items, answers)
    except Exception as error:  # see answer_samples
        if len(items) == 1:
            return {items[0].id: _failed(items[0], error)}
    if not is_part:
        try:
            shared_answers(vlm, [prompt], [], max_new_tokens=1)
        except Exception as error:  # what fails untouched is not looked for arm by arm
            return {item.id: _failed(item, error) for item in items}
    # Whichever arm it was: few others are answered apart from the rest.
    half = len(items) // 2
    results: dict[str, StoredResult] = {}
    for part in (items[:half], items[half:]):
        results |= _whole_pictures(vlm, prompt, part, max_new_tokens, is_part=True)
    return results


def _results(
    vlm: LVLM, prompt: Prompt, items: Sequence[WorkItem], answers: Answers
) -> dict[str, StoredResult]:
    """Say of each item what its arm has answered: ``answers`` begin with the untouched one."""
    rest = iter(answers[1:])
    return {
        item.id: _result(
            vlm,
            prompt,
            item,
            item.arm.truncation,
            answers[0] if item.arm.truncation is None else next(rest),
            prompt,
        )
        for item in items
    }


def _smaller_pictures(
    vlm: LVLM, whole: Prompt, sample: TaskSample, items: Sequence[WorkItem], max_new_tokens: int
) -> dict[str, StoredResult]:
    tokens = int(whole.layout.image_positions.size)
    growing: bool | None = None
    results = {}
    for item in items:
        policy = item.arm.truncation
        assert policy is not None
        try:
            if growing is None:
                growing = grows(vlm, whole, sample.question)
            share = mean_share(policy, vlm.num_layers, tokens)
            prompt, rest = down_sampled(vlm, whole, sample.question, share, growing=growing)
        except Exception as error:  # see answer_samples
            results[item.id] = _failed(item, error)
            continue
        results[item.id] = _alone(vlm, prompt, item, rest, max_new_tokens, whole)
    return results


def _alone(
    vlm: LVLM,
    prompt: Prompt,
    item: WorkItem,
    policy: Truncation | None,
    max_new_tokens: int,
    whole: Prompt,
) -> StoredResult:
    try:
        cut = [] if policy is None else [policy]
        ids = shared_answers(vlm, [prompt], cut, max_new_tokens=max_new_tokens)[0][-1]
        return _result(vlm, prompt, item, policy, ids, whole)
    except Exception as error:  # see answer_samples
        return _failed(item, error)


def _result(
    vlm: LVLM,
    prompt: Prompt,
    item: WorkItem,
    policy: Truncation | None,
    ids: tuple[int, ...],
    whole: Prompt,
) -> StoredResult:
    cost, untouched = _cost(vlm, prompt, policy), _cost(vlm, whole, None)
    text = len(prompt.layout) - int(prompt.layout.image_positions.size)
    shape = DecoderShape.of(vlm.model, vlm.decoder_layers)
    return StoredResult(
        id=item.id,
        answer=answer_text(vlm.processor.tokenizer, ids),
        image_tokens=sum(cost.tokens_per_layer) / len(cost.tokens_per_layer) - text,
        flops=None if cost.exact is None else float(cost.exact),
        flops_untouched=None if untouched.exact is None else float(untouched.exact),
        formula_share=formula_share(shape, cost.tokens_per_layer, len(whole.layout)),
    )


def _cost(vlm: LVLM, prompt: Prompt, policy: Truncation | None) -> PrefillCost:
    counts = [
        int(prompt.layout.positions_of(segment).size)
        for segment in (Segment.SYSTEM, Segment.IMAGE, Segment.USER)
    ]
    return prefill_cost(vlm.model, vlm.decoder_layers, policy, *counts)


def _failed(item: WorkItem, error: Exception) -> StoredResult:
    return StoredResult(id=item.id, answer=None, failure=failure_reason(error))
