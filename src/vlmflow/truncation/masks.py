"""What a decoder layer is called with, cut down to the tokens that are still there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmflow.errors import ModelError


def take(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Pick tokens of every row of a batch.

    Parameters
    ----------
    tensor : Tensor
        The batch, of size B or 1, is the axis before ``dim`` for ``dim=-1`` and ``dim=-2``, and
        axis 0 for ``dim=1``.
    index : (B, n) int64
        Which tokens; negative entries give the first one (its value must not matter).
    dim : int
        Axis of the tokens.
    """
    index = index.clamp_min(0).to(tensor.device)
    axis = dim % tensor.ndim
    if index.shape[0] == 1 and tensor.shape[axis - 1] == 1:
        return tensor.index_select(axis, index[0])
    shape = [1] * tensor.ndim
    shape[axis - 1], shape[axis] = index.shape
    wanted = list(tensor.shape)
    wanted[axis - 1] = index.shape[0]
    target = [*wanted]
    target[axis] = index.shape[1]
    return tensor.expand(wanted).gather(axis, index.view(shape).expand(target))


def cut_positions(value: Any, index: Tensor) -> Any:
    """Pick tokens of position embeddings: tensors ``(..., B or 1, N, width)``, nested or not."""
    if isinstance(value, Tensor):
        return take(value, index, -2)
    if isinstance(value, dict):
        return {key: cut_positions(inner, index) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(cut_positions(inner, index) for inner in value)
    return value


def cut_mask(
    mask: Any,
    rows: Tensor,
    columns: Tensor,
    total: int,
    *,
    ragged: bool,
    padding_only: bool,
    window: int | None,
    out_of_window: bool,
) -> Any:
    """Cut an attention mask down to the queries and keys of one layer.

    Parameters
    ----------
    mask : Tensor, BlockMask or None
        The mask of the untouched model: ``(B or 1, heads or 1, queries, keys)``, boolean (True: may
        look) or additive; ``(B, keys)`` with 0 at padding; None: causal without padding.
    rows, columns : (B, n), (B, m) int64
        Positions of queries and keys in the conversation, -1 for slots that stand for nothing.
    total : int
        Length of the conversation with this call's tokens.
    ragged : bool
        Whether there are such slots.
    padding_only : bool
        Whether the layer takes 2-D masks only.
    window : int, optional
        Sliding window of the layer.
    out_of_window : bool
        Whether there may be keys that lie outside the window of a query.

    Returns
    -------
    Tensor, BlockMask or None
        Queries and keys that stand for nothing: nobody sees such a key, and such a query sees
        everything (its result is never used, but it must be a number).
    """
    if mask is None:
        if not ragged and not out_of_window:
            return None
        if padding_only:
            return (columns >= 0).to(torch.int64)
        here, there = rows[:, :, None], columns[:, None, :]
        visible = (there <= here) & (there >= 0)
        if window is not None:
            visible &= there > here - window
        return (visible | (here < 0))[:, None]
    if not isinstance(mask, Tensor):
        return _cut_block_mask(mask, rows, columns, total)
    columns = columns.to(mask.device)
    rows = rows.to(mask.device)
    there = columns - (total - mask.shape[-1])  # a mask ends at the newest token
    if mask.ndim == 2:
        return take(mask, there, -1) * (there >= 0).to(mask.dtype)
    if mask.ndim != 4:
        raise ModelError(f"an attention mask of {mask.ndim} axes cannot be cut to fewer tokens")
    here = rows - (total - mask.shape[-2])
    batch, heads = max(len(rows), len(mask)), mask.shape[1]
    cut = mask.expand(batch, -1, -1, -1)
    index = here.clamp_min(0)[:, None, :, None].expand(-1, heads, -1, cut.shape[-1])
    cut = cut.gather(2, index)
    index = there.clamp_min(0)[:, None, None, :].expand(-1, heads, cut.shape[2], -1)
    cut = cut.gather(3, index)
    if not ragged and not out_of_window:
        return cut
    hidden = (there < 0)[:, None, None, :] & (here >= 0)[:, None, :, None]
    free = (here < 0)[:, None, :, None]
    if cut.dtype == torch.bool:
        return (cut & ~hidden) | free
    lowest = torch.finfo(cut.dtype).min
    return cut.masked_fill(hidden, lowest).masked_fill(free.expand_as(cut), 0.0)


def _cut_block_mask(mask: Any, rows: Tensor, columns: Tensor, total: int) -> Any:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    if not isinstance(mask, BlockMask):
        raise ModelError(
            f"a mask of type {type(mask).__name__} cannot be cut to fewer tokens; load the model "
            "with attn_implementation='sdpa'"
        )
    old: Any = mask.mask_mod
    queries, keys = mask.seq_lengths
    here = rows - (total - queries)
    there = columns - (total - keys)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        q, k = here[batch, query], there[batch, key]
        seen: Tensor = old(batch, head, q.clamp_min(0), k.clamp_min(0)) & (k >= 0)
        return seen | (q < 0)

    return create_block_mask(
        visible, len(rows), None, rows.shape[1], columns.shape[1], device=rows.device
    )
