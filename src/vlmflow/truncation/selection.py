"""Choosing, at one stage and for every row of a batch, which tokens stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.lvlm.families import Family
from vlmflow.truncation.forward_call import Cut, ForwardCall
from vlmflow.truncation.masks import take
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.rankings.candidates import Candidates

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@torch.no_grad()
def choose(
    policy: Policy, call: ForwardCall, layer: int, hidden: Tensor, family: Family, config: Any
) -> Cut:
    """Make the cut of the stage at a layer.

    Parameters
    ----------
    policy, call : Policy, ForwardCall
        What is asked for, and the tokens it is asked of.
    layer : int
        A layer of one of the policy's stages.
    hidden : (B, n, width)
        Its input, before the cut.
    family, config : Family, object
        The model's family, which knows where image tokens are, and its configuration.
    """
    stage = next(stage for stage in policy.stages if stage.layer == layer)
    before, attention = call.cut_at(layer), call.attention.pop(layer - 1, None)
    slots = call.slots(before).to(hidden.device)
    is_image = take(call.is_image, slots, -1).to(hidden.device) & (slots >= 0)
    stay, kept, removed = [], [], []
    for row in range(len(slots)):
        image = is_image[row].nonzero()[:, 0]
        count = min(stage.keep.of(call.images[row]), len(image)) if len(image) else 0
        chosen = image[:0]
        if count:
            seen = _candidates(
                policy, call, layer, hidden, row, slots[row], image, attention, family, config
            )
            chosen = image[_checked(policy.ranking.select(seen, count), count, policy, len(image))]
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


def _checked(chosen: Tensor, count: int, policy: Policy, tokens: int) -> Tensor:
    """Refuse a choice that is not ``count`` different image tokens in order."""
    right = isinstance(chosen, Tensor) and chosen.dtype in _INTEGERS and chosen.shape == (count,)
    if right:
        steps = torch.cat([chosen.new_tensor([-1]), chosen, chosen.new_tensor([tokens])]).diff()
        right = bool((steps > 0).all())
    if not right:
        raise InputError(
            f"ranking {policy.ranking.title} was to choose {count} of {tokens} image tokens, but "
            f"select gave {_shown(chosen)}: return that many different indices, increasing"
        )
    return chosen.long()


def _shown(chosen: object) -> str:
    if not isinstance(chosen, Tensor):
        return f"a {type(chosen).__name__}"
    values = chosen.flatten()[:8].tolist()
    return f"shape {tuple(chosen.shape)} with {values}{'...' if chosen.numel() > 8 else ''}"


def _candidates(
    policy: Policy,
    call: ForwardCall,
    layer: int,
    hidden: Tensor,
    row: int,
    slots: Tensor,
    image: Tensor,
    attention: AttentionCall | None,
    family: Family,
    config: Any,
) -> Candidates:
    """Collect what a ranking may look at in one row."""
    device = hidden.device
    is_image = call.is_image[row].to(device)
    is_text = ~is_image
    if call.valid is not None:
        is_text = is_text & call.valid[row, -call.length :].to(device)
    later = (slots > is_image.int().argmax()) & is_text[slots.clamp_min(0)]

    def maps() -> Tensor | None:
        return None if call.maps is None else call.maps[row][:, slots[image].cpu()].to(device)

    return Candidates(
        name=policy.ranking.known_as(),
        reads=policy.ranking.all_reads,
        rows=policy.ranking.rows,
        layer=layer,
        hidden=hidden[row],
        image=image,
        text=later.nonzero()[:, 0],
        _sample=row,
        _call=attention,
        _places=lambda: _places(call, row, slots[image], family, config),
        _maps=maps,
        _words=lambda: call.ids[row].to(device)[is_text].tolist(),
    )


def _places(
    call: ForwardCall, row: int, slots: Tensor, family: Family, config: Any
) -> Tensor | None:
    """Picture, row and column of image tokens, where the family knows them."""
    before = sum(call.images[:row])
    places = family.places(before, call.images[row], call.arguments, config)
    if places is None:
        return None
    number = call.is_image[row].cumsum(0) - 1
    return torch.from_numpy(places)[number[slots.to(number.device)].cpu()]
