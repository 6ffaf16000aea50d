"""Rebuilt rows of A and dA against the full matrices, for every kind of mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vlmflow.flow.attention_rows import (
    AttentionCall,
    all_attention_rows,
    attention_rows,
    gradient_rows,
    mean_attention,
    signed_saliency,
)

BATCH, HEADS, LENGTH, WIDTH, VALUE_WIDTH = 2, 4, 13, 6, 5
ROWS = torch.arange(3, LENGTH)


def _call(key_heads: int = 2, dtype: torch.dtype = torch.float32, **options) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (3 * torch.randn(shape, generator=generator)).to(dtype)

    call = AttentionCall(
        query=draw(BATCH, HEADS, LENGTH, WIDTH),
        key=draw(BATCH, key_heads, LENGTH, WIDTH),
        value=draw(BATCH, key_heads, LENGTH, VALUE_WIDTH),
        mask=None,
        scale=0.3,
        causal=False,
    )
    return dataclasses.replace(call, **options)


def _visible(call: AttentionCall) -> torch.Tensor:
    """Which pairs may look, (batch, heads, N, N), written out pair by pair."""
    seen = torch.ones(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    for sample in range(BATCH):
        for i in range(LENGTH):
            for j in range(LENGTH):
                plain = call.mask is None or call.mask.ndim == 2
                if call.mask is not None and call.mask.ndim == 2 and not call.mask[sample, j]:
                    seen[sample, :, i, j] = False
                if plain and call.causal and j > i:
                    seen[sample, :, i, j] = False
                if plain and call.window is not None and i - j >= call.window:
                    seen[sample, :, i, j] = False
    if call.mask is not None and call.mask.ndim == 4 and call.mask.dtype == torch.bool:
        seen &= call.mask
    return seen


def _full_attention(call: AttentionCall) -> torch.Tensor:
    keys = call.key.double().repeat_interleave(HEADS // call.key.shape[1], dim=1)
    scores = call.query.double() @ keys.transpose(2, 3) * call.scale
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~_visible(call), -torch.inf)
    if call.mask is not None and call.mask.ndim == 4 and call.mask.dtype != torch.bool:
        scores = scores + call.mask.double()
    top = scores.exp()
    bottom = top.sum(-1, keepdim=True)
    if call.sinks is not None:
        bottom = bottom + call.sinks.double().exp().view(1, -1, 1, 1)
    return top / bottom


PADDING = torch.ones(BATCH, LENGTH, dtype=torch.long)
PADDING[1, :3] = 0
LOWER = torch.ones(LENGTH, LENGTH).tril().bool().view(1, 1, LENGTH, LENGTH)
BLOCK = LOWER.clone()
BLOCK[..., 2:7, 2:7] = True  # an image block that sees itself both ways
PER_HEAD = torch.randn(BATCH, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1))

CALLS = {
    "bidirectional": {},
    "causal": {"causal": True},
    "one key head": {"key_heads": 1, "causal": True},
    "no groups": {"key_heads": 4, "causal": True},
    "window": {"causal": True, "window": 4},
    "padding": {"causal": True, "mask": PADDING},
    "padding and window": {"causal": True, "mask": PADDING, "window": 6},
    "boolean mask": {"mask": BLOCK, "causal": True},  # a 4-D mask overrules the flag
    "boolean mask per sample": {"mask": LOWER & PADDING.bool()[:, None, None, :]},
    "additive mask": {"mask": torch.zeros(LOWER.shape).masked_fill(~LOWER, -1e30)},
    "additive mask per head": {"mask": PER_HEAD},
    "softcap": {"causal": True, "softcap": 2.0},
    "sinks": {"causal": True, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_attention_rows_are_rows_of_the_full_matrix(options):
    call = _call(**options)
    full = _full_attention(call)
    for sample in range(BATCH):
        rows = attention_rows(call, sample, ROWS)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.double(), full[sample][:, ROWS], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("budget", [1, 1500, 3000, 10**9])
def test_reductions_equal_autograd_at_any_budget(options, budget):
    """The budget cuts rows and heads into pieces; the sums must not depend on where."""
    call = _call(**options)
    full = _full_attention(call).requires_grad_()
    values = call.value.double().repeat_interleave(HEADS // call.key.shape[1], dim=1)
    weights = torch.randn(BATCH, LENGTH, HEADS, VALUE_WIDTH, dtype=torch.double)
    # transformers hands attention's output on as (batch, N, heads, head_dim).
    (weights * (full @ values).transpose(1, 2)).sum().backward()
    for sample in range(BATCH):
        signed, nothing = signed_saliency(call, weights.float(), sample, ROWS, budget=budget)
        assert nothing is None
        expected = (full * full.grad)[sample].sum(0)[ROWS].detach()
        torch.testing.assert_close(signed.double(), expected, rtol=1e-5, atol=1e-5)
        mean = mean_attention(call, sample, ROWS, budget=budget)
        average = full.detach()[sample].mean(0)[ROWS]
        torch.testing.assert_close(mean.double(), average, rtol=1e-5, atol=1e-7)
        wanted = torch.arange(len(ROWS)) % 2 == 1
        together, some = signed_saliency(call, weights.float(), sample, ROWS, wanted, budget=budget)
        torch.testing.assert_close(together, signed)
        torch.testing.assert_close(some.double(), average[wanted], rtol=1e-5, atol=1e-7)


def test_half_precision_inputs_are_read_exactly():
    """bf16 q, k, v are widened before the products: no second rounding."""
    call = _call(dtype=torch.bfloat16, causal=True)
    torch.testing.assert_close(
        attention_rows(call, 0, ROWS).double(), _full_attention(call)[0][:, ROWS], rtol=1e-5, atol=0
    )


def test_double_precision_stays():
    call = _call(dtype=torch.float64)
    gradient = torch.ones(BATCH, LENGTH, HEADS, VALUE_WIDTH, dtype=torch.float64)
    assert attention_rows(call, 0, ROWS).dtype == torch.float64
    assert gradient_rows(call, gradient, 0, ROWS).dtype == torch.float64


def test_no_rows():
    nothing = torch.zeros(0, dtype=torch.long)
    assert mean_attention(_call(), 0, nothing).shape == (0, LENGTH)


@pytest.mark.parametrize("budget", [1, 2000, 2**20])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_all_rows_in_pieces_are_the_rows(key_heads, budget):
    call = _call(key_heads, causal=True)
    whole = all_attention_rows(call, 1, ROWS, budget=budget)
    torch.testing.assert_close(whole, attention_rows(call, 1, ROWS), rtol=1e-6, atol=1e-7)
    gradient = torch.randn(BATCH, LENGTH, HEADS, VALUE_WIDTH)
    for held in (None, whole):
        saliency, _ = signed_saliency(call, gradient, 1, ROWS, held=held, budget=budget)
        wanted = (whole * gradient_rows(call, gradient, 1, ROWS)).sum(0)
        torch.testing.assert_close(saliency, wanted, rtol=1e-5, atol=1e-6)
