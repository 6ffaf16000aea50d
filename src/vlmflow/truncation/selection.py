"""Choosing, at one stage and for every prompt of a batch, which tokens stay."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.forward_call import Cut, ForwardCall
from vlmflow.truncation.masks import pad_rows, take
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@torch.no_grad()
def choose(policy: Policy, call: ForwardCall, layer: int, hidden: Tensor) -> Cut:
    """Make the cut of the stage at a layer, whose input so far is ``hidden``, (B, n, width).

    Raises
    ------
    InputError
        If a ranking does not choose as it should.
    """
    keep = next(stage.keep for stage in policy.stages if stage.layer == layer)
    ranking, attention = policy.ranking, call.attention.pop(layer - 1, None)
    slots = call.slots(call.cut_at(layer)).to(hidden.device)
    is_image = take(call.is_image, slots, -1).to(hidden.device) & (slots >= 0)
    is_text = take(call.is_text, slots, -1).to(hidden.device)
    stay, kept, removed = [], [], []
    for row, row_slots in enumerate(slots):
        image = is_image[row].nonzero()[:, 0]
        count = min(keep.of(call.images[row]), len(image)) if len(image) else 0
        chosen = image[:0]
        if count:
            # Empty rows, -1, lie before the first image token, too.
            after = row_slots > call.is_image[row].int().argmax().to(hidden.device)
            seen = Candidates(
                name=ranking.known_as(),
                reads=ranking.all_reads,
                rows=ranking.rows,
                layer=layer,
                hidden=hidden[row],
                image=image,
                text=(is_text[row] & after).nonzero()[:, 0],
                _call=call,
                _row=row,
                _image_slots=row_slots[image],
                _attention=attention,
            )
            chosen = image[_checked(ranking.select(seen, count), count, ranking, len(image))]
        staying = (row_slots >= 0) & ~is_image[row]
        staying[chosen] = True
        gone = image[~staying[image]]
        if policy.remainder == "average":
            staying[gone[-1:]] = True
        kept.append(chosen)
        removed.append(gone)
        stay.append(staying.nonzero()[:, 0])
    local, ragged = pad_rows(stay)
    return Cut(
        layer, local, torch.where(local < 0, -1, take(slots, local, -1)), ragged, kept, removed
    )


def _checked(chosen: Tensor, count: int, ranking: Ranking, tokens: int) -> Tensor:
    """Refuse a choice that is not ``count`` different image tokens in order."""
    shown = f"a {type(chosen).__name__}"
    if isinstance(chosen, Tensor):
        if chosen.dtype in _INTEGERS and chosen.shape == (count,):
            ends = chosen.new_tensor([-1]), chosen.new_tensor([tokens])
            if bool((torch.cat([ends[0], chosen, ends[1]]).diff() > 0).all()):
                return chosen.long()
        values = chosen.flatten()[:8].tolist()
        shown = f"shape {tuple(chosen.shape)} with {values}{'...' if chosen.numel() > 8 else ''}"
    raise InputError(
        f"ranking {ranking.title} was to choose {count} of {tokens} image tokens, but select gave "
        f"{shown}: return that many different indices, increasing"
    )
