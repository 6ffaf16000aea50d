"""Attention knockout: the answer's rows are cut off from image tokens, at each layer or from it on.

Geva et al. (2023, arXiv 2304.14767) cut attention edges to see where information passes. Here no
token is removed: the prompt goes on reading the picture, and only the rows that predict the answer
no longer look at image tokens. What the answer loses at a layer passes there from the picture to
the answer directly, not by way of the question's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.as_found import as_found, check_untruncated
from vlmflow.lvlm.batch import pad_id
from vlmflow.removal.answer_curve import AnswerCurve, AnswerRows, answer_rows, compared
from vlmflow.removal.branches import Branches, sees
from vlmflow.truncation.amounts import Count
from vlmflow.truncation.forward_call import Cut
from vlmflow.truncation.masks import pad_rows, take
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

WHAT = "an attention knockout"


@dataclass(frozen=True, eq=False)
class Knockout:
    """One answer whose rows are cut off from image tokens, against the untouched model.

    Parameters
    ----------
    onwards : AnswerCurve
        From each layer on.
    single : AnswerCurve
        At each layer alone.
    """

    onwards: AnswerCurve
    single: AnswerCurve


def knockouts(vlm: LVLM, prompts: Sequence[Prompt]) -> list[Knockout]:
    """Measure a batch of prompts with answers, both curves for all layers in one forward pass.

    The prompt runs once; beside each layer the ``T + 1`` rows of the answer run ``2 K`` times,
    against its keys and values. The logits of ``(2 L + 1) (T + 1)`` positions exist at once.

    Parameters
    ----------
    vlm : LVLM
        The model; left exactly as found.
    prompts : sequence of Prompt
        Prompts with answers (:meth:`vlmflow.lvlm.model.LVLM.prepare`).

    Returns
    -------
    list of Knockout
        In the order of the prompts.

    Raises
    ------
    InputError
        For a prompt without an answer.
    ModelError
        For a model with recurrent layers, or whose prompt looks at the answer; if logits are not
        finite.
    """
    if any(prompt.answer is None for prompt in prompts):
        raise InputError(f"{WHAT} measures an answer: prepare every prompt with one")
    check_untruncated(vlm.model, WHAT)
    batch = answer_rows(prompts, pad_id(vlm.processor.tokenizer))
    with as_found(vlm.model, frozen=True), torch.inference_mode(False), torch.no_grad():
        logits = _CutOff(vlm, batch).logits()
    layers = range(len(vlm.decoder_layers))
    measured = []
    for number, prompt in enumerate(prompts):
        own = logits[number, :, : batch.lengths[number]]
        # Two branches begin at each layer, in this order.
        onwards, single = (
            AnswerCurve(**compared(torch.cat([own[:1], own[first::2]]), prompt, layers, WHAT))
            for first in (1, 2)
        )
        measured.append(Knockout(onwards, single))
    return measured


class _CutOff(Branches):
    """Branches of the answer's rows alone; all other tokens' keys are the untouched run's."""

    def __init__(self, vlm: LVLM, batch: AnswerRows) -> None:
        super().__init__(
            vlm,
            batch.inputs,
            batch.is_image,
            batch.is_answer,
            batch.rows,
            Count(0),
            as_ranking(DEFAULT),
        )
        if self.recurrent:
            raise ModelError(
                f"{type(self.model).__name__} has recurrent layers, which pass on what they read "
                f"in a state: {WHAT} cannot cut a token off there; measure a removal curve"
            )
        own = torch.zeros_like(batch.is_image)
        self.own = own.scatter(1, batch.rows, True)

    def _share_prefix(self, mask: Any) -> None:
        """Read everything but the answer's rows off the untouched run's cache."""
        others = self.tokens & ~self.own
        if sees(mask, others, self.own):
            raise ModelError(
                f"in {type(self.model).__name__} tokens of the prompt look at its last one, whose "
                f"state {WHAT} changes; measure a removal curve"
            )
        self.prefix, _ = pad_rows([row.nonzero()[:, 0] for row in others])
        self.computed = self.own

    def _begin(self, layer: int, main: Tensor) -> Tensor:
        """Start two branches: cut off from this layer on, and at it alone."""
        slots, ragged = pad_rows([row.nonzero()[:, 0] for row in self.own])
        nothing = [slots[:0, 0]] * len(slots)
        call = replace(self.prompt, cuts=[], _made={}) if not self.calls else self.calls[0]
        if not call.cuts:
            call.cuts.append(Cut(layer, slots, slots, ragged, nothing, nothing))
        self.calls += [call, call]
        new = take(main, slots, -2)
        started = [] if self.hidden is None else [self.hidden.to(new.device)]
        return torch.cat([*started, new, new])

    def _arguments(self, index: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Hide the image tokens from the branches that are cut off at this layer."""
        arguments = super()._arguments(index, given)
        mask, batch = arguments.get("attention_mask"), len(self.rows)
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            raise ModelError(
                f"{WHAT} needs a mask to hide tokens by, which this attention does not take; load "
                "the model with attn_implementation='sdpa'"
            )
        if self.prefix is None:
            raise ModelError(f"{WHAT} needs the keys of the prompt, which were not kept")
        branches = len(self.calls)
        if len(mask) != branches * batch:
            mask = mask.expand(batch, -1, -1, -1).repeat(branches, 1, 1, 1)
        image = take(self.prompt.is_image, self.prefix, -1) & (self.prefix >= 0)
        image = nn.functional.pad(image, (0, mask.shape[-1] - image.shape[1]))
        # Cut off from layers 0, 1, ... on, and at each of them alone.
        numbers = torch.arange(branches)
        cut = (numbers % 2 == 0) | (numbers // 2 == index)
        hide = (cut[:, None, None] & image.cpu()[None]).flatten(0, 1)[:, None, None].to(mask.device)
        unseen = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return {**arguments, "attention_mask": mask.masked_fill(hide, unseen)}
