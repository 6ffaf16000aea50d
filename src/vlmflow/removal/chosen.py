"""Logits of an answer where chosen image tokens are removed before the first layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlmflow.errors import ModelError
from vlmflow.lvlm.as_found import as_found, check_untruncated
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.removal.branches import Branches
from vlmflow.truncation.amounts import Count
from vlmflow.truncation.forward_call import Cut
from vlmflow.truncation.masks import pad_rows, take
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking


def logits_without(vlm: LVLM, prompt: Prompt, removed: Tensor) -> Tensor:
    """Run a prompt once, and beside it branches without some of its image tokens.

    A branch holds the image tokens that it keeps and the text after the first one, at their own
    positions; what stands before the picture is read from the untouched run's cache.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model, left exactly as found, and a prompt with its answer.
    removed : (n, P) bool
        Image tokens that each branch goes without, from layer 0 on.

    Returns
    -------
    (1 + n, T, vocabulary)
        At the positions that predict the answer: of the untouched prompt, then of the branches.

    Raises
    ------
    ModelError
        If the last token before the answer is an image token, or logits are not finite.
    """
    check_untruncated(vlm.model, "removal of chosen image tokens")
    device = prompt.inputs["input_ids"].device
    segments = torch.from_numpy(prompt.layout.segments.copy())[None].to(device)
    rows = torch.from_numpy(prompt.layout.answer_rows)[None].to(device)
    with as_found(vlm.model, frozen=True), torch.inference_mode(False), torch.no_grad():
        logits = _ChosenBranches(vlm, prompt, segments, rows, removed.to(device)).logits()[0]
    if not bool(logits.isfinite().all()):
        raise ModelError(
            "the logits without some image tokens are not finite; load the model in float32 or "
            "bfloat16"
        )
    return logits


class _ChosenBranches(Branches):
    """Branches that all begin at layer 0, each without the tokens chosen for it."""

    def __init__(
        self, vlm: LVLM, prompt: Prompt, segments: Tensor, rows: Tensor, removed: Tensor
    ) -> None:
        super().__init__(
            vlm,
            prompt.inputs,
            segments == Segment.IMAGE,
            segments == Segment.ANSWER,
            rows,
            Count(0),
            as_ranking(DEFAULT),
        )
        self.removed = removed

    def _begin(self, layer: int, main: Tensor) -> Tensor:
        """Start all branches at layer 0; after that there is none to start."""
        if self.hidden is not None:
            return self.hidden
        del layer
        image = self.prompt.is_image[0].nonzero()[:, 0]
        stay = []
        for gone in self.removed:
            staying = self.computed[0].clone()
            staying[image[gone]] = False
            stay.append(staying.nonzero()[:, 0])
        # One length for all, so that they follow each other along the batch axis.
        padded, ragged = pad_rows(stay)
        nothing = image[:0]
        for slots in padded[:, None]:
            call = replace(self.prompt, cuts=[], _made={})
            call.cuts.append(Cut(0, slots, slots, ragged, [nothing], [nothing]))
            self.calls.append(call)
        return torch.cat([take(main, call.cuts[0].slots, -2) for call in self.calls])
