"""Show what every attention layer is called with, without changing what it computes.

The decoder's configs name, for the duration, an attention function of ours in transformers'
``AttentionInterface``. It calls the very implementation the model had, then shows q, k, v, the mask
and the output to a callback. Other parts of the model (the vision tower) keep their own functions.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall

OnCall = Callable[[int, AttentionCall, Tensor], None]
"""Called with the layer's index, its inputs, and its output (batch, N, heads, head_dim)."""

_numbers = itertools.count()


@contextmanager
def watch_attention(
    layers: nn.ModuleList,
    on_call: OnCall,
    *,
    only: Collection[int] | None = None,
    cached: bool = False,
) -> Iterator[None]:
    """Show every self-attention call of the decoder layers to a callback.

    Parameters
    ----------
    layers : ModuleList
        The decoder layers.
    on_call : callable
        Gets ``(layer, call, output)`` after every self-attention over the whole sequence. Calls
        over something else (cross-attention, a cache) are left out.
    only : collection of int, optional
        Layers to show; None: all.
    cached : bool
        Show calls whose keys come in part from a cache, too.

    Raises
    ------
    ModelError
        If the attention in use cannot be followed (flex attention, a position bias, a paged cache).
        Raised from inside the forward pass where only the call shows it.
    """
    layer_of = {
        id(module): index
        for index, layer in enumerate(layers)
        for module in layer.modules()
        if only is None or index in only
    }
    names: dict[str, str] = {}
    originals = [(config, config._attn_implementation) for config in _configs(layers)]
    try:
        for config, original in originals:
            if original not in names:
                # Model code asks whether the name contains "flash": it has to stay part of ours.
                names[original] = f"vlmflow_{next(_numbers)}_{original}"
                _register(names[original], original, layer_of, on_call, cached)
            # The plain attribute: the property would pass the name on to every sub-config.
            config._attn_implementation_internal = names[original]
        yield
    finally:
        for config, original in originals:
            config._attn_implementation_internal = original
        for name in names.values():
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)


def _configs(layers: nn.ModuleList) -> list[Any]:
    """Every config that modules of the decoder layers read, once each."""
    configs: dict[int, Any] = {}
    for module in layers.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            configs[id(config)] = config
            if config._attn_implementation == "flex_attention":
                raise ModelError(
                    "attention 'flex_attention' cannot be followed row by row; "
                    "load the model with attn_implementation='sdpa'"
                )
    return list(configs.values())


def _register(
    name: str, original: str, layer_of: dict[int, int], on_call: OnCall, cached: bool
) -> None:
    def watched(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        implementation = _implementation(module, original)
        config: Any = module.config
        # Flash attention looks up its kernel by the name in the config: it must find its own.
        config._attn_implementation_internal = original
        try:
            result = implementation(module, query, key, value, attention_mask, *args, **kwargs)
        finally:
            config._attn_implementation_internal = name
        layer = layer_of.get(id(module))
        if layer is not None and (cached or query.shape[2] == key.shape[2]):
            call = _call(module, query, key, value, attention_mask, original, kwargs)
            on_call(layer, call, result[0])
        return result

    AttentionInterface.register(name, watched)
    mask_function: Any = AttentionMaskInterface._global_mapping.get(original)
    if mask_function is not None:
        AttentionMaskInterface.register(name, mask_function)


def _implementation(module: nn.Module, name: str) -> Callable[..., Any]:
    """Find the attention function that the module would have called under its own setting."""
    sources = [sys.modules[cls.__module__] for cls in type(module).__mro__]
    interfaces = [getattr(source, "ALL_ATTENTION_FUNCTIONS", None) for source in sources]
    eager = [getattr(source, "eager_attention_forward", None) for source in sources]
    interface: Any = next(filter(None, [*interfaces, ALL_ATTENTION_FUNCTIONS]))
    function: Callable[..., Any] | None = interface.get(name, next(filter(None, eager), None))
    if function is None:
        raise ModelError(
            f"no eager attention function was found beside {type(module).__name__}; "
            f"load the model with attn_implementation='sdpa'"
        )
    return function


def _call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    implementation: str,
    options: dict[str, Any],
) -> AttentionCall:
    for unsupported in ("position_bias", "cache"):
        if options.get(unsupported) is not None:
            raise ModelError(
                f"{type(module).__name__} passes {unsupported!r} to its attention, which cannot be "
                f"rebuilt row by row; this model is not supported"
            )
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
        raise ModelError(
            f"{type(module).__name__} was given a mask of type {type(mask).__name__} that cannot "
            f"be read; load the model with attn_implementation='sdpa'"
        )
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    scale = options.get("scaling")
    sinks = options.get("s_aux")
    return AttentionCall(
        query=query.detach(),
        key=key.detach(),
        value=value.detach(),
        mask=mask,
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        # Eager attention has no causal flag: without a mask everything is seen.
        causal=bool(causal) and implementation != "eager",
        window=None if implementation == "eager" else options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=sinks.detach() if isinstance(sinks, torch.Tensor) else None,
    )
