"""Rollout and relevancy, against loops over eager attention: all matrices and gradients kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import vlmflow
from tests.support.families import FAMILIES
from tests.support.families import picture as smooth
from tests.support.reference import Reference, measure_slowly
from tests.support.slow_signals import answer_rows, relevancy, rollout
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow import fold
from vlmflow.flow.attention_rows import AttentionCall, mixed_rows
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.rollout import Rollout
from vlmflow.lvlm.batch import collate, pad_id

# float32, both sides: 1e-4 of the layer's largest value is some hundred roundings (6e-8 each).
FLOAT32 = 1e-4
BOTH = ("rollout", "relevancy")
CHOSEN = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl_moe", "gemma3", "idefics3")
"""Families: grouped heads in all, tiles, positions on three axes, late image features, sliding
windows beside blocks of a picture that see both ways."""


SLOWLY = {"rollout": rollout, "relevancy": relevancy}


def slow(vlm, prompt, norm="post_attention_layernorm") -> Reference:
    layers, given = vlm.decoder_layers, prompt.inputs
    return measure_slowly(vlm.model, layers, given, prompt.layout, "logprob", norm)


def assert_agrees(maps, truth: Reference, what: str) -> None:
    for name in BOTH:
        targets = maps[name].shape[1]
        assert targets in (1, 1 + len(truth.layout.answer_positions))
        for target in range(targets):
            expected = SLOWLY[name](truth, target)
            values = maps[name][:, target]
            assert values.shape == expected.shape
            largest = np.maximum(expected.max(-1, keepdims=True), 1e-30)
            worst = (np.abs(values - expected) / largest).max()
            assert worst <= FLOAT32, f"{what}, {name}, target {target}: off by {worst:.1e}"


@pytest.mark.parametrize("name", CHOSEN)
def test_folds_agree_with_whole_matrices_also_in_a_padded_batch(name):
    (family, *_) = [family for family in FAMILIES if family.model_type == name]
    vlm, eager = family.lvlm(), family.lvlm("eager")
    batch = [
        vlm.prepare(smooth(1, (30, 20)), "What is it?", "a red"),
        vlm.prepare([smooth(2, (17, 41)), smooth(3, (30, 20))], "Which one is the red one?", "no"),
    ]
    inputs, layouts = collate(batch, pad_id(vlm.processor.tokenizer))
    results = measure(vlm.model, vlm.decoder_layers, inputs, layouts, ExplainOptions(BOTH))
    for prompt, together in zip(batch, results, strict=True):
        assert_agrees(together.maps, slow(eager, prompt, family.norm), family.name)


@pytest.fixture(scope="module")
def tiny():
    """A model with a sliding window, its prompt, and the reference."""
    build = {"kv_heads": 2, "text_model": "mistral", "text_config": {"sliding_window": 9}}
    vlm = vlmflow.LVLM(*tiny_llava(**build))
    eager = vlmflow.LVLM(*tiny_llava(**build, attn_implementation="eager"))
    pictures = [smooth(1, (80, 60)), smooth(2, (60, 80))]
    prompt = vlm.prepare(pictures, "What colour is the circle?", "a red circle")
    return vlm, pictures, prompt, slow(eager, prompt)


@pytest.mark.parametrize(
    "options",
    [{}, {"per_token": False}, {"low_memory": True}, {"low_memory": True, "per_token": False}],
    ids=str,
)
def test_every_way_of_measuring_gives_the_same(tiny, options):
    """Beside signals that read other things, whose numbers must not change either."""
    vlm, pictures, prompt, truth = tiny
    others = ["saliency", "llava_cam"]
    question = "What colour is the circle?"
    flow = vlm.explain(pictures, question, prompt.answer, signals=[*BOTH, *others], **options)
    assert_agrees(flow.maps, truth, str(options))
    without = vlm.explain(pictures, question, prompt.answer, signals=others, **options)
    for name in others:
        np.testing.assert_array_equal(flow.maps[name], without.maps[name])
    np.testing.assert_array_equal(flow.saliency_sum, without.saliency_sum)


def test_passes_are_those_that_are_run(tiny, monkeypatch):
    """The whole answer takes a backward pass of its own where it is not the sum of its tokens'."""
    vlm, pictures, prompt, _ = tiny
    tokens = len(prompt.answer_ids)
    ran = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self, **kw: (ran.append(1), backward(self, **kw))[1]
    )
    for name, counted in (("relevancy", tokens + 1), ("saliency", tokens)):
        ran.clear()
        seen = []
        vlm.explain(
            pictures, "What colour is the circle?", prompt.answer, signals=[name],
            progress=lambda done, of, seen=seen: seen.append((done, of)),
        )  # fmt: skip
        (signal,) = ExplainOptions([name]).named.values()
        assert len(ran) == signal.passes(tokens).backward == counted
        assert signal.passes().backward == signal.passes().forward == 1
        # One forward pass, and one without the picture.
        assert seen == [(done, counted + 2) for done in range(1, counted + 3)]


def test_rollout_needs_no_gradient(tiny, monkeypatch):
    vlm, pictures, prompt, truth = tiny
    assert Rollout().passes(tokens=5).backward == 0
    monkeypatch.setattr(torch.Tensor, "backward", None)
    flow = vlm.explain(
        pictures, "What colour is the circle?", prompt.answer,
        signals=["rollout", "attention"], gradients=False,
    )  # fmt: skip
    for target in range(len(flow.targets)):
        expected = rollout(truth, target)
        np.testing.assert_allclose(flow.maps["rollout"][:, target], expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="signals relevancy are made of gradients, but"):
        ExplainOptions(["rollout", "relevancy"], gradients=False)


def test_rows_are_rebuilt_a_few_at_a_time(tiny, monkeypatch):
    """Chunks change nothing, and no tensor of all heads, rows and columns is made."""
    vlm, _, prompt, truth = tiny
    monkeypatch.setattr(fold, "BUDGET", 4 * len(prompt.layout) * 7)
    largest = 0
    original = Rollout.of_heads

    def watched(self, attention, gradient):
        nonlocal largest
        largest = max(largest, attention.shape[1])
        return original(self, attention, gradient)

    monkeypatch.setattr(Rollout, "of_heads", watched)
    (measured,) = measure(
        vlm.model, vlm.decoder_layers, prompt.inputs, [prompt.layout], ExplainOptions(BOTH)
    )
    assert_agrees(measured.maps, truth, "chunks")
    assert largest == 7


def test_all_heads_of_a_row_are_seen_together():
    """What a signal makes of several heads must not depend on how memory is shared out."""
    generator = torch.Generator().manual_seed(0)
    query, *others = (torch.randn(1, n, 40, 8, generator=generator) for n in (6, 2, 2))
    call = AttentionCall(query, *others, mask=None, scale=1.0, causal=True)
    shapes = []

    def strongest(attention, gradient):
        shapes.append(attention.shape)
        return attention * (attention == attention.amax(0)) * (1 + gradient)

    rows, output_gradient = torch.arange(3, 40), torch.randn(1, 40, 6, 8, generator=generator)
    small, large = (
        mixed_rows(call, 0, rows, strongest, output_gradient, budget=budget)
        for budget in (1, 2**30)
    )
    torch.testing.assert_close(small, large)
    assert {shape[0] for shape in shapes} == {6}
    assert max(shape[1] for shape in shapes[:-1]) == 8
    assert shapes[-1] == (6, 37, 40)


def test_a_model_with_layers_that_mix_without_attention_is_refused():
    """What linear attention mixes is not known, so a product over all layers is not either."""
    (family,) = [family for family in FAMILIES if family.model_type == "lfm2_vl"]
    vlm = family.lvlm()
    for name in BOTH:
        with pytest.raises(
            InputError, match=f"'{name}' multiplies what all .* layer\\(s\\) 0.* have no attention"
        ):
            vlm.explain(smooth(1, (30, 20)), "What is it?", "red", signals=[name])


@dataclass(frozen=True)
class Strongest(vlmflow.Signal):
    """The half of every head's attention that is stronger than its mean, times its gradient."""

    share: float = 1.0
    reads = ("heads", "head_gradients")
    residual = (0.75, 0.25)

    def of_heads(self, attention, gradient):
        strong = attention >= attention.mean(-1, keepdim=True)
        return self.share * strong * attention * gradient.abs()


def test_a_fold_of_a_users_own(tiny):
    vlm, pictures, prompt, truth = tiny
    flow = vlm.explain(
        pictures, "What colour is the circle?", prompt.answer, signals=["strongest(share=2.0)"]
    )
    for target in range(len(flow.targets)):
        product, maps = np.eye(len(truth.layout)), []
        for matrix, gradient in zip(truth.attention, truth.gradients[target], strict=True):
            strong = matrix >= matrix.mean(-1, keepdims=True)
            mixed = (2 * strong * matrix * np.abs(gradient)).mean(0)
            product = 0.75 * product + 0.25 * mixed @ product
            rows = product[answer_rows(truth, target)]
            maps.append(rows[:, truth.layout.image_positions].mean(0))
        scale = np.maximum(np.max(maps, -1, keepdims=True), 1e-30)
        assert (np.abs(flow.maps["strongest"][:, target] - maps) / scale).max() <= FLOAT32


def test_bad_folds_are_refused():
    def declared(**body):
        return dataclass(frozen=True)(type("BadFold", (vlmflow.Signal,), body))()

    weigh = {"of_heads": lambda self, attention, gradient: attention}
    for body, message in (
        ({"reads": "heads"}, r"define of_heads\(self, attention, gradient\)"),
        ({"reads": "head_gradients", **weigh}, "head_gradients come with heads: read both"),
        ({"reads": ("heads", "attention"), **weigh}, "seen at different times; read"),
        ({"reads": "heads", "summed": True, **weigh}, "so their sum is not defined"),
    ):
        with pytest.raises(InputError, match=message):
            ExplainOptions([declared(**body)])
    call = AttentionCall(*(torch.ones(1, 1, 3, 2),) * 3, mask=None, scale=1.0, causal=True)
    short = declared(reads="heads", of_heads=lambda self, attention, gradient: attention[..., :1])
    folded = fold.ForwardFold("short", short, torch.tensor([1]), torch.arange(3))
    with pytest.raises(InputError, match=r"'short' gave \(1, 3, 1\) where .*\(1, 3, 3\)"):
        folded.step(call, 0)
