"""Choosing, at one stage and for every prompt of a batch, whether it is cut and what stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView
from vlmflow.truncation.forward_call import Cut, ForwardCall
from vlmflow.truncation.masks import pad_rows, places_of_true, take
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.rankings.candidates import Candidates, of_picture
from vlmflow.truncation.rankings.ranking import Ranking, highest
from vlmflow.truncation.within_pictures import select_within

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@torch.no_grad()
def leaving(
    policy: Policy,
    call: ForwardCall,
    layer: int,
    hidden: Tensor,
    attention: AttentionCall | None,
    lens: Callable[[Tensor], Tensor],
) -> list[bool]:
    """Say of each prompt whether the stage at a layer concerns it.

    Parameters
    ----------
    policy, call, layer
        Whose stage, of which call.
    hidden : (B, n, width)
        The layer's input so far.
    attention
        Of the layer before, where the policy's signal or ranking reads it.
    lens
        Maps hidden states to logits.
    """
    signal = policy.exit_signal
    whole = [images > 0 for images in call.images]
    if signal is None:
        return whole
    staying = [row for row, has in enumerate(whole) if has and row not in call.left]
    rows = call.rows_at(layer, hidden.device)
    before = call.noted.pop(layer - 1, None)
    values = [
        signal.value(
            ExitView(
                name=signal.known_as(),
                reads=signal.all_reads,
                layer=layer,
                hidden=hidden[row],
                image=rows[row].image,
                text=rows[row].text,
                _row=row,
                _before=None if before is None else before[row],
                _attention=attention,
                _lens=lens,
            )
        )
        for row in staying
    ]
    leaves = [False] * len(whole)
    least = policy.threshold(layer)
    for row, value in zip(staying, numbers_of(values, signal), strict=True):
        leaves[row] = value >= least
    return leaves


def numbers_of(values: list[Tensor], signal: ExitSignal) -> list[float]:
    """Read all values of an exit signal at once.

    Raises
    ------
    InputError
        If one is not a tensor without axes, or not a number.
    """
    for value in values:
        if not isinstance(value, Tensor) or value.ndim:
            shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"exit signal {signal.title} was to give one number, but value gave {shown}: "
                "return a tensor without axes"
            )
    numbers: list[float] = torch.stack(values).tolist() if values else []
    if any(number != number for number in numbers):
        raise InputError(f"exit signal {signal.title} gave a value that is not a number (NaN)")
    return numbers


@torch.no_grad()
def choose(
    policy: Policy,
    call: ForwardCall,
    layer: int,
    hidden: Tensor,
    attention: AttentionCall | None,
    leaves: list[bool],
) -> Cut:
    """Make the cut of the stage at a layer, whose input so far is ``hidden``, (B, n, width).

    ``leaves`` says which prompts it concerns; the others keep what they have.

    Raises
    ------
    InputError
        If a ranking does not choose as it should.
    """
    keep = next(stage.keep for stage in policy.stages if stage.layer == layer)
    ranking, rows = policy.ranking, call.rows_at(layer, hidden.device)
    stay, kept, removed, pictures = [], [], [], []
    checks: list[_Check] = []
    for row, own in enumerate(rows):
        count = min(keep.of(call.images[row]), len(own.image)) if len(own.image) else 0
        chosen = own.image[:0] if leaves[row] else own.image
        of_left = torch.zeros_like(own.image)  # one picture is as good as another where none counts
        if count and leaves[row]:
            seen = Candidates(
                name=ranking.known_as(),
                reads=ranking.all_reads,
                rows=ranking.rows,
                layer=layer,
                hidden=hidden[row],
                image=own.image,
                text=own.text,
                _call=call,
                _row=row,
                _image_slots=own.slots[own.image],
                _attention=attention,
            )
            if policy.within == "picture":
                came = _pictures(call, row, ranking, hidden.device)
                of_left = came[call.image_numbers(row, own.slots[own.image]).to(came.device)]
                picked = select_within(count, of_left, came, partial(_choose_in, ranking, seen))
            else:
                picked, check = _pick(ranking, seen, count)
                checks.append(check)
            chosen = own.image[picked]
        staying = own.slots >= 0
        staying[own.image] = False
        staying[chosen] = True
        goes = ~staying[own.image]
        gone = own.image[places_of_true(goes, len(own.image) - len(chosen))]
        pictures.append(
            (of_left[places_of_true(~goes, len(chosen))], of_left[places_of_true(goes, len(gone))])
        )
        left = own.count - len(gone)
        if policy.remainder == "average" and len(gone):
            staying[gone[-1:]] = True
            left += 1
        kept.append(chosen)
        removed.append(gone)
        stay.append(places_of_true(staying, left))
    _raise_first(checks)
    local, ragged = pad_rows(stay)
    slots = torch.stack([own.slots for own in rows])
    return Cut(
        layer,
        local,
        torch.where(local < 0, -1, take(slots, local, -1)),
        ragged,
        kept,
        removed,
        pictures,
    )


def _pictures(call: ForwardCall, row: int, ranking: Ranking, device: torch.device) -> Tensor:
    """Return the picture of every image token that a prompt came with, (images,)."""
    numbers = call.pictures(row)
    if numbers is None:
        raise InputError(
            f"within='picture' with rank_by={ranking.known_as()!r} needs to know which picture or "
            "group of frames image tokens belong to, which is not known for this model; leave it "
            "out"
        )
    return numbers.to(device)


@dataclass(frozen=True, eq=False)
class _Check:
    """Whether a ranking chose as it should, not yet read off the device."""

    wrong: Tensor  # () bool
    reason: Callable[[], str]


def _raise_first(checks: list[_Check]) -> None:
    """Read all of them at once; InputError for the first that is true."""
    wrong = torch.stack([check.wrong for check in checks]).tolist() if checks else []
    for check, is_wrong in zip(checks, wrong, strict=True):
        if is_wrong:
            raise InputError(check.reason())


def _pick(ranking: Ranking, seen: Candidates, count: int) -> tuple[Tensor, _Check]:
    """Choose among all image tokens that a ranking sees: indices into them, to be checked."""
    if type(ranking).select is Ranking.select:
        scores = ranking.scores_of_each(seen)
        return highest(scores, count), _Check(scores.isnan().any(), lambda: ranking.no_number)
    chosen, tokens = ranking.select(seen, count), len(seen.image)
    places = _as_places(chosen, count, ranking, tokens)
    wrong = (nn.functional.pad(places, (1, 0), value=-1).diff() <= 0).any() | (
        places >= tokens
    ).any()
    check = _Check(wrong, lambda: _not_chosen(chosen, count, ranking, tokens))
    return places.clamp(0, tokens - 1), check  # an index out of range would end a GPU's work


def _choose_in(
    ranking: Ranking, seen: Candidates, tokens: Tensor, keep: int, picture: int
) -> Tensor:
    """Choose among some of the image tokens that a ranking could see."""
    picked, check = _pick(ranking, of_picture(seen, tokens, picture), keep)
    _raise_first([check])
    return picked


def _as_places(chosen: object, count: int, ranking: Ranking, tokens: int) -> Tensor:
    """Return what a ranking chose as (count,) int64; refuse another shape, and no integers."""
    if isinstance(chosen, Tensor) and chosen.dtype in _INTEGERS and chosen.shape == (count,):
        return chosen.long()
    raise InputError(_not_chosen(chosen, count, ranking, tokens))


def _not_chosen(chosen: object, count: int, ranking: Ranking, tokens: int) -> str:
    """Say what a ranking gave instead of ``count`` different image tokens in order."""
    shown = f"a {type(chosen).__name__}"
    if isinstance(chosen, Tensor):
        values = chosen.flatten()[:8].tolist()
        shown = f"shape {tuple(chosen.shape)} with {values}{'...' if chosen.numel() > 8 else ''}"
    return (
        f"ranking {ranking.title} was to choose {count} of {tokens} image tokens, but select gave "
        f"{shown}: return that many different indices, increasing"
    )
