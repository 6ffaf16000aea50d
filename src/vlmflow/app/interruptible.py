"""Stopping a model's work from outside: at its next layer, forwards or backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Check = Callable[[], None]


@contextmanager
def interruptible(
    model: nn.Module, check: Check, on_layer: Callable[[nn.Module], None] | None = None
) -> Iterator[None]:
    """Call ``check`` before each layer and, where gradients flow, on the way back through it.

    What it raises ends the work there, and comes out of this block.

    Parameters
    ----------
    model : nn.Module
        Every member of its lists of modules is a layer: decoder's and vision tower's alike.
    check : callable
        Raises to stop.
    on_layer : callable, optional
        Called before each layer, too, with it.
    """

    def before(layer: nn.Module, _inputs: Any) -> None:
        check()
        if on_layer is not None:
            on_layer(layer)

    def after(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) and output else output
        if isinstance(state, torch.Tensor) and state.requires_grad:
            hooked: Any = state  # torch declares no types for it
            hooked.register_hook(lambda _gradient: check())

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = {id(layer): layer for members in lists for layer in members}
    handles = [layer.register_forward_pre_hook(before) for layer in layers.values()]
    handles += [layer.register_forward_hook(after) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
