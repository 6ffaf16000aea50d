"""One sample under every setting of a study, with all that the settings share done once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.tokens import answer_text
from vlmflow.studies.truncations.arms import Setting, mean_share
from vlmflow.studies.truncations.down_sample import down_sampled, grows
from vlmflow.studies.truncations.store import StoredResult
from vlmflow.tasks.base import TaskSample
from vlmflow.truncation.flops import DecoderShape, PrefillCost, formula_share, prefill_cost
from vlmflow.truncation.shared_answers import shared_answers
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


@dataclass(frozen=True)
class Asked:
    """One setting of one sample, and the id its result will have."""

    setting: Setting
    id: str


def answer_sample(
    vlm: LVLM, sample: TaskSample, asked: Sequence[Asked], max_new_tokens: int
) -> list[StoredResult]:
    """Answer one sample under some settings.

    Whatever goes wrong with the sample or with one setting becomes a failed result with its reason:
    a study of thousands of samples must not end at one broken picture.

    Parameters
    ----------
    vlm : LVLM
        The model.
    sample : TaskSample
        What is asked.
    asked : sequence of S Asked
        Settings.
    max_new_tokens : int
        Longest answer.

    Returns
    -------
    list of S StoredResult
        In the order of ``asked``.
    """
    try:
        prompt = vlm.prepare(sample.pictures, sample.question)
    except Exception as error:  # one broken sample must not end a study of thousands
        return [_failed(one, error) for one in asked]
    results: dict[str, StoredResult] = {}
    whole = [one for one in asked if not one.setting.is_down_sampled]
    if whole:
        results |= _whole_pictures(vlm, prompt, whole, max_new_tokens)
    smaller = [one for one in asked if one.setting.is_down_sampled]
    if smaller:
        results |= _smaller_pictures(vlm, prompt, sample, smaller, max_new_tokens)
    return [results[one.id] for one in asked]


def _whole_pictures(
    vlm: LVLM, prompt: Prompt, asked: Sequence[Asked], max_new_tokens: int
) -> dict[str, StoredResult]:
    policies = [one.setting.truncation for one in asked]
    cut = [policy for policy in policies if policy is not None]
    try:
        own, *others = shared_answers(vlm, prompt, cut, max_new_tokens=max_new_tokens)
    except Exception:  # whichever setting it was, the others are answered alone
        return {
            one.id: _alone(vlm, prompt, one, one.setting.truncation, max_new_tokens, prompt)
            for one in asked
        }
    found, rest = {}, iter(others)
    for one, policy in zip(asked, policies, strict=True):
        ids = own if policy is None else next(rest)
        found[one.id] = _told(vlm, prompt, one, policy, ids, prompt)
    return found


def _smaller_pictures(
    vlm: LVLM,
    whole: Prompt,
    sample: TaskSample,
    asked: Sequence[Asked],
    max_new_tokens: int,
) -> dict[str, StoredResult]:
    tokens = int(whole.layout.image_positions.size)
    growing: bool | None = None
    found = {}
    for one in asked:
        policy = one.setting.truncation
        assert policy is not None
        try:
            if growing is None:
                growing = grows(vlm, whole, sample.question)
            share = mean_share(policy, vlm.num_layers, tokens)
            prompt, rest = down_sampled(vlm, whole, sample.question, share, growing=growing)
        except Exception as error:  # see answer_sample
            found[one.id] = _failed(one, error)
            continue
        found[one.id] = _alone(vlm, prompt, one, rest, max_new_tokens, whole)
    return found


def _alone(
    vlm: LVLM,
    prompt: Prompt,
    one: Asked,
    policy: Truncation | None,
    max_new_tokens: int,
    whole: Prompt,
) -> StoredResult:
    try:
        cut = [] if policy is None else [policy]
        ids = shared_answers(vlm, prompt, cut, max_new_tokens=max_new_tokens)[-1]
        return _told(vlm, prompt, one, policy, ids, whole)
    except Exception as error:  # see answer_sample
        return _failed(one, error)


def _told(
    vlm: LVLM,
    prompt: Prompt,
    one: Asked,
    policy: Truncation | None,
    ids: tuple[int, ...],
    whole: Prompt,
) -> StoredResult:
    cost, untouched = _cost(vlm, prompt, policy), _cost(vlm, whole, None)
    text = len(prompt.layout) - int(prompt.layout.image_positions.size)
    shape = DecoderShape.of(vlm.model, vlm.decoder_layers)
    return StoredResult(
        id=one.id,
        answer=answer_text(vlm.processor.tokenizer, ids),
        image_tokens=_mean(cost.tokens_per_layer) - text,
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


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _failed(one: Asked, error: Exception) -> StoredResult:
    words = str(error).splitlines()
    reason = f"{type(error).__name__}: {words[0] if words else 'no reason given'}"
    return StoredResult(id=one.id, answer=None, failure=reason[:500])
