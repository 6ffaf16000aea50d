"""What becomes of the tokens that a ranking did not choose."""

from __future__ import annotations

import torch
from torch import Tensor


def fold(
    hidden: Tensor,
    sizes: Tensor,
    kept: Tensor,
    removed: Tensor,
    how: str,
    pictures: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Put the removed tokens of one prompt into kept ones, or leave them out.

    Parameters
    ----------
    hidden : (n, width)
        Hidden states of one row of the batch.
    sizes : (n,)
        How many tokens each of them represents already.
    kept, removed : (k,), (r,) int64
        Image tokens in order, as indices into ``hidden``.
    how : str
        ``"drop"``, ``"merge"`` or ``"average"`` (into the last removed token): see
        :class:`vlmflow.truncation.truncation.Truncation`.
    pictures : pair of (k,) and (r,) int64, optional
        Pictures of the kept and of the removed tokens, where they are merged in their own alone.

    Returns
    -------
    hidden, sizes : Tensor
        New states and sizes of all n tokens. Inputs are not changed.
    """
    if how == "drop" or not len(removed):
        return hidden, sizes
    if how == "average":
        target = removed[-1:].expand(len(removed))
        base = sizes.clone()
        base[removed[-1]] = 0  # it is among those that are added
    else:
        directions = torch.nn.functional.normalize(hidden.float(), dim=-1)
        alike = directions[removed] @ directions[kept].T
        if pictures is not None:
            of_kept, of_removed = pictures
            alike = alike.masked_fill(of_removed[:, None] != of_kept, -torch.inf)
        target = kept[alike.argmax(1)]  # the first of equals
        base = sizes.clone()
    states = hidden.float() * base[:, None]
    states = states.index_add(0, target, hidden[removed].float() * sizes[removed, None])
    total = base.index_add(0, target, sizes[removed])
    touched = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    touched[target] = True
    merged = (states / total.clamp_min(1)[:, None]).to(hidden.dtype)
    return torch.where(touched[:, None], merged, hidden), torch.where(touched, total, sizes)
