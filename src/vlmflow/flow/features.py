"""Feature maps of the decoder layers and their gradients, at a hook point of choice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.recompute import replaced_forward
from vlmflow.flow.signals.signal import LAYER_INPUT, LAYER_OUTPUT, POST_ATTENTION_NORM

NORM_NAMES = (
    "post_attention_layernorm",
    "post_attention_norm",
    "ffn_norm",
    "ln_2",
    "final_layer_norm",
)
"""What architectures call that norm."""

Show = Callable[[Tensor, Tensor], None]
"""Called with a layer's features and their gradient, both (batch, N, channels)."""


@contextmanager
def watch_features(
    layers: nn.ModuleList,
    hook: str,
    on_gradient: Callable[[int, Tensor, Tensor], None],
    watched: Collection[int],
) -> Iterator[None]:
    """Show layers' features and their gradient to a callback during the backward pass.

    Parameters
    ----------
    layers : ModuleList
        The decoder layers.
    hook : str
        ``"post_attention_norm"`` (the paper's; where attention and MLP run side by side, the one
        norm that both read), ``"layer_input"``, ``"layer_output"``, or the name
        of a submodule that every layer has and that maps one tensor to one tensor
        (``"input_layernorm"``, ``"self_attn.v_proj"``).
    on_gradient : callable
        Gets ``(layer, features, gradient)``, both tensors (batch, N, channels).
    watched : collection of int
        The layers that are shown. What they show stays in memory until their gradient has come.

    Raises
    ------
    InputError
        If a layer has no such hook point, or it takes something other than one tensor.
    """
    with ExitStack() as stack:
        for index in sorted(watched):
            layer = layers[index]
            show = partial(on_gradient, index)
            if hook == LAYER_INPUT:
                handle: Any = layer.register_forward_pre_hook(
                    partial(_on_input, show), with_kwargs=True
                )
                stack.callback(handle.remove)
            elif hook == LAYER_OUTPUT:
                handle = layer.register_forward_hook(partial(_on_output, show))
                stack.callback(handle.remove)
            else:
                module = _hook_module(layer, hook)
                stack.enter_context(replaced_forward(module, partial(_on_forward, hook, show)))
        yield


def check_hook(layers: nn.ModuleList, hook: str) -> None:
    """Raise InputError for a hook point that some layer does not have; names what is possible."""
    if hook not in (LAYER_INPUT, LAYER_OUTPUT):
        for layer in layers:
            _hook_module(layer, hook)


def _hook_module(layer: nn.Module, hook: str) -> nn.Module:
    """Find the submodule that a hook's name means."""
    names = NORM_NAMES if hook == POST_ATTENTION_NORM else (hook,)
    modules: dict[str, nn.Module] = dict(layer.named_modules())
    for name in names:
        if name and name in modules:
            return modules[name]
    norms = [module for name, module in layer.named_children() if "norm" in name]
    if hook == POST_ATTENTION_NORM and len(norms) == 1:
        return norms[0]  # attention and MLP side by side: both read the only norm there is
    children = ", ".join(repr(name) for name, _ in layer.named_children())
    raise InputError(
        f"hook={hook!r}, but {type(layer).__name__} has no such part; "
        f"possible are '{LAYER_INPUT}', '{LAYER_OUTPUT}' and its submodules, such as {children}"
    )


class _Recomputed(torch.autograd.Function):
    """A module that keeps its input and computes its output a second time in the backward pass.

    Keeping the output for the map would cost a tensor per layer that autograd does not keep. A norm
    keeps its input anyway (half-precision ones a float32 copy of it), and is cheap to redo.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, forward: Any, show: Any) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.module_forward, ctx.show = forward, show
        output: Tensor = forward(inputs)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            output = ctx.module_forward(leaf)
        ctx.show(output.detach(), gradients[0])
        (input_gradient,) = torch.autograd.grad(output, leaf, gradients[0])
        return input_gradient, None, None


def _on_forward(
    hook: str, show: Show, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        raise InputError(
            f"hook={hook!r} does not take exactly one tensor; "
            f"choose a norm, '{LAYER_INPUT}' or '{LAYER_OUTPUT}'"
        )
    return _Recomputed.apply(args[0], forward, show)  # type: ignore[no-untyped-call]


def _on_input(show: Show, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _show_gradient(show, args[0] if args else kwargs["hidden_states"])


def _on_output(show: Show, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    _show_gradient(show, output if isinstance(output, Tensor) else output[0])


def _show_gradient(show: Show, features: Tensor) -> None:
    if features.requires_grad:
        features.register_hook(partial(show, features.detach()))  # type: ignore[no-untyped-call]
