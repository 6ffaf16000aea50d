"""Weights are drawn from the top down, and the trained ones come back to the last bit."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import InputError, ModelError
from vlmflow.trust.randomised import STAGES, randomised


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*tiny_llava(3, layers=4), name="tiny")


def changed(vlm, before):
    return {name for name, weight in vlm.model.named_parameters()
            if not torch.equal(weight, before[name])}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_draws_its_own_weights_and_puts_all_back(vlm, stage):
    before = {name: weight.clone() for name, weight in vlm.model.named_parameters()}
    layers = {id(w): i for i, layer in enumerate(vlm.decoder_layers) for w in layer.parameters()}
    place = {name: layers.get(id(w)) for name, w in vlm.model.named_parameters()}
    wanted = {
        "upper half": {name for name, layer in place.items() if layer in (2, 3)},
        "decoder": {name for name, layer in place.items() if layer is not None},
        "everything": set(place),
    }[stage]
    # A constant tensor (a norm's ones) is drawn with no spread and stays as it is.
    constant = {name for name in wanted if before[name].std(correction=0) == 0}
    large = max(wanted - constant, key=lambda name: before[name].numel())
    seen = []

    def interrupted():
        with randomised(vlm, stage, seed=1):
            weight = dict(vlm.model.named_parameters())[large]
            seen.extend([changed(vlm, before), weight.clone()])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    drawn, once = seen
    assert drawn == wanted - constant
    assert once.std().item() == pytest.approx(before[large].std().item(), rel=0.1)
    assert changed(vlm, before) == set()
    with randomised(vlm, stage, seed=1):
        assert torch.equal(dict(vlm.model.named_parameters())[large], once)
    with randomised(vlm, stage, seed=2):
        assert not torch.equal(dict(vlm.model.named_parameters())[large], once)


def test_what_cannot_be_drawn_is_refused(vlm):
    with pytest.raises(InputError, match="'nothing' is none of upper half, decoder, everything"):
        randomised(vlm, "nothing").__enter__()
    quantised = LVLM(*tiny_llava(3, layers=2), name="small")
    layer = quantised.decoder_layers[1].mlp.down_proj
    weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    layer.weight = weight
    with pytest.raises(ModelError, match=r"quantised or offloaded.*sanity=0"):
        randomised(quantised, "decoder").__enter__()
