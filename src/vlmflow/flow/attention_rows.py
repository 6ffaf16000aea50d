"""Chosen rows of an attention matrix and of its gradient, rebuilt from q, k, v and dO.

Fused attention never writes its matrix A down. A few rows of it are cheap to rebuild,
``A = softmax(scale * q K^T + mask)``, and so are the rows of its gradient: the output is
``O = A V``, hence ``dA = dO V^T``. Memory is O(rows x N) and bounded by a budget, never
O(heads x N^2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BUDGET = 32 * 2**20
"""Bytes of scratch memory that rebuilding may take (more if a few rows of one head need more)."""

LEAST_ROWS = 8

Weigh = Callable[[Tensor, Tensor | None], Tensor]
"""Takes A and dA, (heads, R, N) each, and gives as much."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one attention layer was called with, kept by reference."""

    # (batch, heads, Q, head_dim), after rotary embedding. Q is N, or less where the other keys come
    # from a cache: queries are the last Q of the N positions.
    query: Tensor
    key: Tensor  # (batch, key heads, N, head_dim); heads is a multiple of key heads
    value: Tensor  # (batch, key heads, N, value width)
    # (batch or 1, heads or 1, Q, N), boolean (True: visible) or additive; or (batch, N) with 0 at
    # padding, as flash attention takes it
    mask: Tensor | None
    scale: float  # Factor on q K^T
    # Position i sees positions <= i, and > i - window. Both hold on top of a 2-D or absent mask
    # only: a 4-D mask says everything itself.
    causal: bool
    window: int | None = None
    softcap: float | None = None  # Scores become softcap * tanh(score / softcap)
    sinks: Tensor | None = None  # (heads,): one more score in each softmax, dropped afterwards


def attention_rows(
    call: AttentionCall, sample: int, rows: Tensor, key_heads: slice = slice(None)
) -> Tensor:
    """Rows of ``A = softmax(scale * q K^T + mask)`` in float32 (float64 for a float64 model).

    Parameters
    ----------
    call : AttentionCall
        The layer's inputs.
    sample : int
        Row of the batch.
    rows : (R,) int64
        Queries whose attention is wanted.
    key_heads : slice
        Which key heads; each comes with all query heads of its group.

    Returns
    -------
    (heads, R, N)
    """
    keys = _wide(call.key[sample, key_heads])
    queries = _grouped(_wide(call.query[sample][:, rows]) * call.scale, call, key_heads)
    scores = (queries.flatten(1, 2) @ keys.transpose(1, 2)).view(*queries.shape[:3], -1)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    _mask(scores, call, sample, rows, key_heads)
    if call.sinks is None:
        return scores.softmax(-1).flatten(0, 1)
    sinks = _wide(call.sinks).view(call.key.shape[1], -1, 1, 1)[key_heads]
    widened = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], dim=-1)
    return widened.softmax(-1)[..., :-1].flatten(0, 1)


def all_attention_rows(
    call: AttentionCall, sample: int, rows: Tensor, *, budget: int = BUDGET
) -> Tensor:
    """All heads' :func:`attention_rows`, (heads, R, N), in pieces that keep to a budget."""
    shape = (call.query.shape[1], len(rows), call.key.shape[2])
    whole = torch.empty(shape, dtype=_wide_dtype(call.query), device=call.query.device)
    per_key_head = whole.view(call.key.shape[1], -1, *shape[1:])
    for part, heads in _pieces(call, rows, budget):
        piece = attention_rows(call, sample, rows[part], heads)
        own = per_key_head[heads, :, part]
        own.copy_(piece.view(own.shape))
    return whole


def gradient_rows(
    call: AttentionCall,
    output_gradient: Tensor,
    sample: int,
    rows: Tensor,
    key_heads: slice = slice(None),
) -> Tensor:
    """Rows of ``dA = dO V^T``, the gradient of the target with respect to A: (heads, R, N).

    Parameters are those of :func:`attention_rows`, and ``output_gradient``, (batch, N, heads,
    head_dim): the gradient with respect to the attention's output, before its projection. Masked
    pairs are not zeroed: A is 0 there.
    """
    values = _wide(call.value[sample, key_heads])
    gradient = _wide(output_gradient[sample, rows]).transpose(0, 1)
    grouped = _grouped(gradient, call, key_heads)
    product = grouped.flatten(1, 2) @ values.transpose(1, 2)
    return product.view(-1, len(rows), values.shape[1])


def mean_attention(
    call: AttentionCall, sample: int, rows: Tensor, *, budget: int = BUDGET
) -> Tensor:
    """Mean of A over the heads, ``(R, N)``: paper eq. 9."""
    total = _empty(call, rows)
    for part, heads in _pieces(call, rows, budget):
        total[part] += attention_rows(call, sample, rows[part], heads).sum(0)
    return total / call.query.shape[1]


def signed_saliency(
    call: AttentionCall,
    output_gradient: Tensor,
    sample: int,
    rows: Tensor,
    attended: Tensor | None = None,
    *,
    held: Tensor | None = None,
    budget: int = BUDGET,
) -> tuple[Tensor, Tensor | None]:
    """``sum_h A_h * dA_h``, ``(R, N)``: saliency flow before the absolute value.

    It is linear in the target, so the sum over answer tokens is that of the whole answer. With
    ``attended``, (R,) bool, :func:`mean_attention` of those rows comes with it: A is rebuilt once
    for both, or not at all where all of its rows are ``held``, (heads, R, N).
    """
    saliency, attention = _empty(call, rows), None if attended is None else _empty(call, rows)
    for part, heads in _pieces(call, rows, budget):
        if held is None:
            product = attention_rows(call, sample, rows[part], heads)
        else:
            product = held.view(call.key.shape[1], -1, *held.shape[1:])[heads, :, part]
            product = product.flatten(0, 1).clone()
        if attention is not None and attended is not None:
            chosen = attended[part]
            attention[part][chosen] += product[:, chosen].sum(0)
        product *= gradient_rows(call, output_gradient, sample, rows[part], heads)
        saliency[part] += product.sum(0)
    return saliency, None if attention is None else attention[attended] / call.query.shape[1]


def mixed_rows(
    call: AttentionCall,
    sample: int,
    rows: Tensor,
    weigh: Weigh,
    output_gradient: Tensor | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """Mean over the heads of what ``weigh`` makes of A and, with ``output_gradient``, of dA.

    Returns (R, N). ``weigh`` is given all heads of some rows at a time.
    """
    total = _empty(call, rows)
    row = 4 * 3 * call.query.shape[1] * call.key.shape[2]
    at_once = max(LEAST_ROWS, budget // row)
    for part in (slice(first, first + at_once) for first in range(0, len(rows), at_once)):
        attention, gradient = attention_rows(call, sample, rows[part]), None
        if output_gradient is not None:
            gradient = gradient_rows(call, output_gradient, sample, rows[part])
        total[part] = weigh(attention, gradient).mean(0)
    return total


def _empty(call: AttentionCall, rows: Tensor) -> Tensor:
    shape = (len(rows), call.key.shape[2])
    return torch.zeros(shape, dtype=_wide_dtype(call.query), device=call.query.device)


def _pieces(call: AttentionCall, rows: Tensor, budget: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of key heads whose scratch memory stays within the budget."""
    key_heads, length, width = call.key.shape[1:]
    group = call.query.shape[1] // key_heads
    # Scores, attention and gradient of a row; keys and values of a head, each as 4-byte floats.
    row, head = 4 * 3 * group * length, 4 * length * (width + call.value.shape[3])
    # A few rows always: widening keys and values again for every row would cost more than it saves.
    rows_at_once = min(len(rows), max(LEAST_ROWS, (budget - head) // row))
    heads_at_once = max(1, budget // (head + row * rows_at_once)) if rows_at_once else 1
    for first_row in range(0, len(rows), max(1, rows_at_once)):
        for first_head in range(0, key_heads, heads_at_once):
            yield (
                slice(first_row, first_row + rows_at_once),
                slice(first_head, first_head + heads_at_once),
            )


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: bf16 q, k, v are exact in it, only the products would be rounded."""
    return tensor.to(_wide_dtype(tensor))


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _grouped(per_head: Tensor, call: AttentionCall, key_heads: slice) -> Tensor:
    """(heads, R, D) -> (chosen key heads, query heads of each, R, D)."""
    return per_head.view(call.key.shape[1], -1, *per_head.shape[1:])[key_heads]


def _mask(scores: Tensor, call: AttentionCall, sample: int, rows: Tensor, heads: slice) -> None:
    """Apply the layer's own mask to scores (key heads, group, R, N), in place."""
    mask, length = call.mask, scores.shape[-1]
    if mask is not None and mask.ndim == 4:
        allowed = mask[sample if mask.shape[0] > 1 else 0][:, rows, :length]
        if allowed.shape[0] > 1:
            allowed = _grouped(allowed, call, heads)
        if allowed.dtype == torch.bool:
            scores.masked_fill_(~allowed, -torch.inf)
        else:
            scores += allowed
        return
    key_positions = torch.arange(length, device=rows.device)
    query_positions = rows[:, None] + (call.key.shape[2] - call.query.shape[2])
    if mask is not None:
        scores.masked_fill_(mask[sample, -length:] == 0, -torch.inf)
    if call.causal:
        scores.masked_fill_(key_positions > query_positions, -torch.inf)
    if call.window is not None:
        scores.masked_fill_(key_positions <= query_positions - call.window, -torch.inf)
