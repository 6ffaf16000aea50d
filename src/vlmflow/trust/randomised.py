"""A model with drawn weights, for a while: what a map still shows then, it shows of any model.

The check of Adebayo et al., Sanity Checks for Saliency Maps (NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.model import LVLM

STAGES = ("upper half", "decoder", "everything")
"""From the top down: the upper half of the decoder layers, all of them, and every weight."""


@contextmanager
def randomised(vlm: LVLM, stage: str, seed: int = 0) -> Iterator[None]:
    """Draw weights anew for the length of a block, and put the trained ones back.

    Each tensor is drawn from the normal distribution with its own mean and standard deviation, so
    that activations keep their size. The trained ones wait in main memory.

    Parameters
    ----------
    vlm : LVLM
        The model.
    stage : str
        One of :data:`STAGES`.
    seed : int
        Of the draws.

    Raises
    ------
    InputError
        For a stage that does not exist.
    ModelError
        If weights are quantised or not loaded.
    """
    if stage not in STAGES:
        raise InputError(f"stage={stage!r} is none of {', '.join(STAGES)}")
    layers = list(vlm.decoder_layers)
    modules: list[nn.Module] = layers[len(layers) // 2 :] if stage == STAGES[0] else layers
    if stage == STAGES[2]:
        modules = [vlm.model]
    # Shared ones once.
    weights = list({id(w): w for module in modules for w in module.parameters()}.values())
    if any(weight.is_meta or not weight.is_floating_point() for weight in weights):
        raise ModelError(
            f"weights of {vlm.name} are quantised or offloaded, so they cannot be drawn anew; "
            "leave the check out with sanity=0"
        )
    trained = [weight.detach().to("cpu", copy=True) for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight, own in zip(weights, trained, strict=True):
                values = own.float()
                drawn = torch.randn(own.shape, generator=generator) * values.std(correction=0)
                weight.copy_(drawn + values.mean())
        yield
    finally:
        with torch.no_grad():
            for weight, own in zip(weights, trained, strict=True):
                weight.copy_(own)
