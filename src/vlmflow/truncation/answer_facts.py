"""One answer, truncated or not, with all that a reader compares: tokens, FLOPs, times, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.flops import measured_flops, prefill_cost
from vlmflow.truncation.timing import timed_answer
from vlmflow.truncation.truncation import Truncation


def answer_facts(
    vlm: LVLM,
    prompt: Prompt,
    policy: Truncation | ExitPolicy | None,
    *,
    max_new_tokens: int = 64,
    on_token: Callable[[Sequence[int]], None] | None = None,
) -> dict[str, Any]:
    """Answer, and say what it cost, in JSON's own types.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model and a prompt without an answer.
    policy : Truncation or ExitPolicy, optional
        What removes image tokens; None: the untouched model answers.
    max_new_tokens : int
        Longest answer.
    on_token : callable, optional
        As for :func:`vlmflow.truncation.timing.timed_answer`.

    Returns
    -------
    dict
        What :class:`vlmflow.truncation.timing.TimedAnswer` holds, the policy, and the tokens of
        each layer; with a policy also its share of the untouched model's FLOPs, by FastV's formula,
        exact and measured.
    """
    answer = timed_answer(vlm, prompt, policy, max_new_tokens=max_new_tokens, on_token=on_token)
    counts = [
        len(prompt.layout.positions_of(segment))
        for segment in (Segment.SYSTEM, Segment.IMAGE, Segment.USER)
    ]
    # What an exit policy removes is known once the prompt has left, or has not.
    removed = policy.applied(answer.exit_layer) if isinstance(policy, ExitPolicy) else policy
    cost = prefill_cost(vlm.model, vlm.decoder_layers, removed, *counts)
    facts: dict[str, Any] = {
        **asdict(answer),
        "policy" if isinstance(policy, ExitPolicy) else "truncation": policy and policy.to_json(),
        "image_tokens": counts[1],
        "tokens_per_layer": list(cost.tokens_per_layer),
    }
    if policy is not None:
        measured = measured_flops(vlm.model, prompt.inputs, removed)
        whole = measured_flops(vlm.model, prompt.inputs, None)
        facts["flops"] = {
            "formula_share": cost.formula_share,
            "decoder_share": cost.decoder_share,
            "prefill_share": cost.exact_share,
            "measured_share": measured / whole,
            "measured": measured,
        }
    return facts


def compared(facts: Mapping[str, Any], untouched: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the facts of a truncated answer with those of the untouched model's.

    ``ratios`` are truncated over untouched: below 1 is faster or smaller, None was not measured.
    """
    ratios = {
        key: facts[key] / untouched[key] if facts[key] and untouched[key] else None
        for key in ("prefill", "per_token", "end_to_end", "cache_bytes")
    }
    return {"same_answer": facts["ids"] == untouched["ids"], "ratios": ratios}
