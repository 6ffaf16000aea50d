"""What a decoder layer is called with, cut down to the tokens that are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
    ones, whole = [1] * (axis - 1), list(tensor.shape)
    whole[axis - 1] = len(index)
    shape = [*whole[:axis], index.shape[1], *whole[axis + 1 :]]
    index = index.view(*ones, *index.shape, *[1] * (tensor.ndim - axis - 1))
    return tensor.expand(whole).gather(axis, index.expand(shape))


def places_of_true(mask: Tensor, count: int) -> Tensor:
    """Return where a mask, (n,) bool, is True: (count,) int64, in order.

    ``count`` says how often, so that a GPU is not waited for, as ``nonzero`` would.
    """
    return mask.to(torch.uint8).sort(descending=True, stable=True).indices[:count]


def pad_rows(rows: list[Tensor]) -> tuple[Tensor, bool]:
    """Stack index rows of different lengths, short ones led by -1; say whether any is short."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    padded = [nn.functional.pad(row, (longest - len(row), 0), value=-1) for row in rows]
    return torch.stack(padded), min(lengths) < longest


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
    queries: Tensor,
    keys: Tensor,
    total: int,
    *,
    gaps: bool,
    padding_only: bool,
    window: int | None,
) -> Any:
    """Cut an attention mask down to the queries and keys of one layer.

    Parameters
    ----------
    mask : Tensor, BlockMask or None
        The mask of the untouched model: ``(B or 1, heads or 1, queries, keys)``, boolean (True: may
        look) or additive; ``(B, keys)`` with 0 at padding; None: causal without padding.
    queries, keys : (B, n), (B, m) int64
        Their positions in the conversation, -1 where a row is empty.
    total : int
        Length of the conversation with this call's tokens.
    gaps : bool
        Whether rows may be empty, or keys lie outside the window of a query.
    padding_only : bool
        Whether the layer takes 2-D masks only.
    window : int, optional
        Sliding window of the layer.

    Returns
    -------
    Tensor or BlockMask
        No query sees an empty key, and an empty query sees everything (its result is never used,
        but it must be a number).
    """
    if mask is None:
        if padding_only:
            return (keys >= 0).to(torch.int64)
        query, key = queries[:, :, None], keys[:, None, :]
        visible = (key <= query) & (key >= 0)
        if window is not None:
            visible &= key > query - window
        return (visible | (query < 0))[:, None]
    if not isinstance(mask, Tensor):
        return _cut_block_mask(mask, queries, keys, total)
    columns = keys.to(mask.device) - (total - mask.shape[-1])  # a mask ends at the newest token
    if mask.ndim == 2:
        return take(mask, columns, -1) * (columns >= 0).to(mask.dtype)
    if mask.ndim != 4:
        raise ModelError(f"an attention mask of {mask.ndim} axes cannot be cut to fewer tokens")
    rows = queries.to(mask.device) - (total - mask.shape[-2])
    heads = mask.shape[1]
    cut = mask.expand(max(len(rows), len(mask)), -1, -1, -1)
    row_index = rows.clamp_min(0)[:, None, :, None].expand(-1, heads, -1, cut.shape[-1])
    cut = cut.gather(2, row_index)
    column_index = columns.clamp_min(0)[:, None, None, :].expand(-1, heads, cut.shape[2], -1)
    cut = cut.gather(3, column_index)
    if not gaps:
        return cut
    hidden = (columns < 0)[:, None, None, :] & (rows >= 0)[:, None, :, None]
    free = (rows < 0)[:, None, :, None]
    if cut.dtype == torch.bool:
        return (cut & ~hidden) | free
    lowest = torch.finfo(cut.dtype).min
    return cut.masked_fill(hidden, lowest).masked_fill(free.expand_as(cut), 0.0)


def _cut_block_mask(mask: Any, queries: Tensor, keys: Tensor, total: int) -> Any:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    if not isinstance(mask, BlockMask):
        raise ModelError(
            f"a mask of type {type(mask).__name__} cannot be cut to fewer tokens; load the model "
            "with attn_implementation='sdpa'"
        )
    untouched: Any = mask.mask_mod
    rows, columns = (
        positions - (total - length)
        for positions, length in zip((queries, keys), mask.seq_lengths, strict=True)
    )

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row, column = rows[batch, query], columns[batch, key]
        seen: Tensor = untouched(batch, head, row.clamp_min(0), column.clamp_min(0)) & (column >= 0)
        return seen | (row < 0)

    size = queries.shape[1], keys.shape[1]
    return create_block_mask(visible, len(queries), None, *size, device=queries.device)
