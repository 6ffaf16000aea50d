"""The answer to an explained prompt under a truncation, and what each layer saw of the picture."""

from __future__ import annotations

import dataclasses

import numpy as np

from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import answer_text
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.truncated_answer import TruncatedAnswer
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.run import TruncatedRun
from vlmflow.truncation.truncation import Truncation


def check_truncation(vlm: LVLM, truncation: Truncation) -> None:
    """Raise InputError or ModelError for a truncation that does not fit a model, in no time."""
    with truncation(vlm.model):
        pass


def with_truncation(
    vlm: LVLM,
    flow: InformationFlow,
    prompt: Prompt,
    truncation: Truncation,
    *,
    max_new_tokens: int = 64,
) -> InformationFlow:
    """Return a result with the truncated answer beside the one that it explains.

    Parameters
    ----------
    vlm, flow, prompt : LVLM, InformationFlow, Prompt
        The model, what it measured, and the prompt of that, without an answer.
    truncation : Truncation
        What is removed, from which layer on. One more answer is generated.
    max_new_tokens : int
        Longest answer.

    Raises
    ------
    InputError, ModelError
        If the truncation fits neither the model nor the prompt.
    """
    with truncation(vlm.model) as run:
        ids = vlm.generate_ids(prompt, max_new_tokens=max_new_tokens)
    answer = answer_text(vlm.processor.tokenizer, ids)
    return beside_truncated(flow, truncation, answer, run)


def beside_truncated(
    flow: InformationFlow, truncation: Truncation | ExitPolicy, answer: str, run: TruncatedRun
) -> InformationFlow:
    """Return a result with an answer given under a truncation, and what each layer took of it.

    Parameters
    ----------
    flow : InformationFlow
        The untouched model's answer to the same prompt.
    truncation, answer : Truncation or ExitPolicy, str
        What removed image tokens, and what the model answered then.
    run : TruncatedRun
        Of that answer, or of its first token.
    """
    image = flow.layout.image_positions
    seen = np.stack([np.isin(image, positions) for positions in run.positions_per_layer()])
    return dataclasses.replace(flow, truncated=TruncatedAnswer(truncation.to_json(), answer, seen))
