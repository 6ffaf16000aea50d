"""Choosing, at one stage and for every row of a batch, which tokens stay."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.lvlm.families import family_of
from vlmflow.truncation.forward_call import Call, Cut
from vlmflow.truncation.masks import take
from vlmflow.truncation.policy import Truncation
from vlmflow.truncation.rankings import RANKINGS, Candidates

BY_PLACE = ("uniform", "top_left")
"""Rankings that read where tokens are."""


@torch.no_grad()
def choose(policy: Truncation, call: Call, layer: int, hidden: Tensor, config: Any) -> Cut:
    """Make the cut of the stage at a layer.

    Parameters
    ----------
    policy, call : Truncation, Call
        What is asked for, and the tokens it is asked of.
    layer : int
        A layer of one of the policy's stages.
    hidden : (B, n, width)
        Its input, before the cut.
    config : object
        The model's configuration.
    """
    stage = next(number for number, (at, _) in enumerate(policy.stages) if at == layer)
    before, attention = call.cut_at(layer), call.attention.pop(layer - 1, None)
    slots = call.slots(before).to(hidden.device)
    is_image = take(call.is_image, slots, -1).to(hidden.device) & (slots >= 0)
    stay, kept, removed = [], [], []
    for row in range(len(slots)):
        image = is_image[row].nonzero()[:, 0]
        count = min(policy.kept(stage, call.images[row]), len(image)) if len(image) else 0
        chosen = image[:0]
        if count:
            candidates = _candidates(
                policy, call, layer, hidden, row, slots[row], image, attention, config
            )
            chosen = image[RANKINGS[policy.rank_by].select(candidates, count)]
        staying = (slots[row] >= 0) & ~is_image[row]
        staying[chosen] = True
        gone = image[~staying[image]]
        if policy.remainder == "average":
            staying[gone[-1:]] = True
        kept.append(chosen)
        removed.append(gone)
        stay.append(staying.nonzero()[:, 0])
    longest = max(map(len, stay))
    local = torch.stack(
        [nn.functional.pad(tokens, (longest - len(tokens), 0), value=-1) for tokens in stay]
    )
    return Cut(
        layer=layer,
        local=local,
        slots=torch.where(local < 0, -1, take(slots, local, -1)),
        ragged=any(len(tokens) < longest for tokens in stay),
        kept=kept,
        removed=removed,
    )


def _candidates(
    policy: Truncation,
    call: Call,
    layer: int,
    hidden: Tensor,
    row: int,
    own: Tensor,
    image: Tensor,
    attention: AttentionCall | None,
    config: Any,
) -> Candidates:
    """Collect what a ranking may look at in one row."""
    device = hidden.device
    is_image, here = call.is_image[row].to(device), own.clamp_min(0)
    is_text = ~is_image
    if call.valid is not None:
        is_text = is_text & call.valid[row, -call.length :].to(device)
    later = (own > is_image.int().argmax()) & is_text[here]
    words = call.ids[row].to(device)[is_text].tolist() if policy.rank_by == "random" else []
    return Candidates(
        layer=layer,
        hidden=hidden[row],
        image=image,
        text=later.nonzero()[:, 0],
        sample=row,
        call=attention,
        places=_places(call, row, own[image], config) if policy.rank_by in BY_PLACE else None,
        gradient_scores=call.oracle[layer][row].to(device)[own[image]] if call.oracle else None,
        seed=zlib.crc32(repr((policy.seed, layer, words)).encode()),
    )


def _places(call: Call, row: int, slots: Tensor, config: Any) -> Tensor | None:
    """Picture, row and column of image tokens, where the family knows them."""
    before = sum(call.images[:row])
    found = family_of(config.model_type).places(before, call.images[row], call.arguments, config)
    if found is None:
        return None
    number = call.is_image[row].cumsum(0) - 1
    return torch.from_numpy(found)[number[slots.to(number.device)].cpu()]
