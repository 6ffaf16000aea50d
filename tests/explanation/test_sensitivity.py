"""Sensitivity against eager gradients at every layer's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vlmflow
from tests.support.families import FAMILIES, LAYERS, picture
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow import features
from vlmflow.flow.signals.sensitivity import Sensitivity

QUESTION, ANSWER = "What colour is it?", "a red"


def eager_sensitivity(vlm, prompt, first):
    """(1 + T, P): lengths of states times lengths of gradients, layer by layer."""
    image = torch.from_numpy(prompt.layout.image_positions)
    states = {}

    def keep(index):
        def hook(_layer, args, kwargs):
            states[index] = args[0] if args else kwargs["hidden_states"]
            if states[index].requires_grad:
                states[index].retain_grad()
                return None
            states[index] = states[index].detach().requires_grad_()
            return (
                ((states[index], *args[1:]), kwargs)
                if args
                else (args, {**kwargs, "hidden_states": states[index]})
            )

        return hook

    handles = [
        layer.register_forward_pre_hook(keep(index), with_kwargs=True)
        for index, layer in enumerate(vlm.decoder_layers)
    ]
    with torch.enable_grad():
        logits = vlm.model(**prompt.inputs, use_cache=False).logits[0].double()
    for handle in handles:
        handle.remove()
    tokens = []
    for position in prompt.layout.answer_positions:
        row = logits[position - 1]
        tokens.append(row[prompt.inputs["input_ids"][0, position]] - row.logsumexp(0))
    maps = []
    for target in (sum(tokens), *tokens):
        own = [states[layer] for layer in range(first)]
        gradients = torch.autograd.grad(target, own, retain_graph=True)
        maps.append(
            sum(
                state[0, image].detach().norm(dim=1) * gradient[0, image].norm(dim=1)
                for state, gradient in zip(own, gradients, strict=True)
            ).numpy()
        )
    return np.stack(maps)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "lfm2_vl", "blip-2"])
def test_the_map_is_a_sum_of_products_of_lengths(name):
    (family, *_) = [family for family in FAMILIES if family.model_type == name]
    vlm, eager = family.lvlm(), family.lvlm("eager")
    pictures = [picture(1, (30, 20)), picture(2, (17, 41))][: 2 - family.queries]
    prompt = eager.prepare(pictures, QUESTION, ANSWER)
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=["sensitivity"])
    expected = eager_sensitivity(eager, prompt, -(-LAYERS // 3))
    own = np.stack([flow.map("sensitivity", None, target) for target in range(len(flow.targets))])
    np.testing.assert_allclose(own, expected, rtol=2e-4, atol=1e-6 * float(expected.max()))
    # All layers, by its parameter.
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=[Sensitivity(layers=LAYERS)])
    whole = eager_sensitivity(eager, prompt, LAYERS)
    np.testing.assert_allclose(flow.map("sensitivity"), whole[0], rtol=2e-4, atol=1e-6)


def test_layers_that_a_model_lacks_are_refused():
    vlm = FAMILIES[0].lvlm()
    for layers in (0, LAYERS + 1, 1.5):
        with pytest.raises(InputError, match=r"but the model has 4 decoder layers \(1..4\)"):
            vlm.explain(
                picture(1, (30, 20)), QUESTION, ANSWER, signals=[Sensitivity(layers=layers)]
            )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_option_changes_the_map(family):
    """Layers recomputed, the answer explained as a whole, half precision: one map."""
    vlm = family.lvlm()
    pictures = [picture(1, (30, 20))]
    flow = vlm.explain(pictures, QUESTION, ANSWER)
    own = flow.maps["sensitivity"]
    assert flow.flag("sensitivity") == "ok"
    scale = float(own.max())
    again = vlm.explain(pictures, QUESTION, ANSWER, low_memory=True)
    np.testing.assert_allclose(again.maps["sensitivity"], own, rtol=1e-4, atol=1e-6 * scale)
    whole = vlm.explain(pictures, QUESTION, ANSWER, per_token=False)
    np.testing.assert_allclose(whole.maps["sensitivity"], own[:, :1], rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_the_map_up_to_its_digits(dtype):
    """bfloat16 rounds by 0.4 %, some tens of times; 0.4 % of the largest value was seen."""
    vlm, exact = (vlmflow.LVLM(*tiny_llava(kv_heads=2, dtype=dtype)) for _ in range(2))
    exact.model.float()
    sample = picture(1, (30, 20)), QUESTION, ANSWER
    half, truth = (model.explain(*sample).map("sensitivity") for model in (vlm, exact))
    assert np.abs(half - truth).max() < 0.05 * truth.max()


def test_only_the_summed_layers_are_held(monkeypatch):
    """What is watched keeps a layer's input in memory until its gradient has come."""
    vlm, watched = FAMILIES[0].lvlm(), []
    on_input = features._on_input
    monkeypatch.setattr(
        features, "_on_input", lambda *call: watched.append(call[1]) or on_input(*call)
    )
    vlm.explain(picture(1, (30, 20)), QUESTION, ANSWER)
    summed = -(-LAYERS // 3)
    assert watched == list(vlm.decoder_layers)[:summed]
