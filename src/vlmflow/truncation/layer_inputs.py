"""What a decoder layer is called with beside its hidden states, for the tokens that are left."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import ModelError
from vlmflow.truncation.forward_call import Cut, ForwardCall
from vlmflow.truncation.masks import cut_mask, cut_positions, take

RECURRENT = ("linear_attention", "conv")
"""Kinds of layers (``config.layer_types``) that transformers masks as recurrent ones."""


class LayerInputs:
    """Cuts the arguments of one decoder layer.

    Parameters
    ----------
    model, layers, index : nn.Module, nn.ModuleList, int
        The model, its decoder layers, and which of them.
    repack : bool
        Whether the tokens that are left are numbered again from 0.

    Raises
    ------
    ModelError
        If positions are to be re-packed and the model does not embed them by rotation.
    """

    def __init__(self, model: Any, layers: nn.ModuleList, index: int, *, repack: bool) -> None:
        self.index = index
        modules = list(layers[index].modules())
        configs = (getattr(module, "config", None) for module in modules)
        self.config: Any = next(filter(None, configs), model.config.get_text_config())
        kinds = getattr(self.config, "layer_types", None)
        kind = None if kinds is None else kinds[index]
        self.window: int | None = None
        if kind in (None, "sliding_attention"):
            self.window = getattr(self.config, "sliding_window", None)
        for module in modules:
            self.window = getattr(module, "sliding_window", self.window)
        # Linear attention and convolution take padding only, and keep a state instead of keys.
        self.recurrent = kind in RECURRENT
        self.rotary = _rotary(model) if repack else None
        if self.rotary is not None:
            parameters = inspect.signature(self.rotary.forward).parameters
            self.rotary_options = {"layer_type": kind} if "layer_type" in parameters else {}

    def arguments(
        self,
        call: ForwardCall,
        cut: Cut | None,
        given: Mapping[str, Any],
        *,
        earlier: Tensor | None = None,
        ragged: bool = False,
        shared: bool = False,
    ) -> dict[str, Any]:
        """Return the layer's keyword arguments for the tokens that are left.

        Parameters
        ----------
        call, cut : ForwardCall, Cut
            The model's call, and what is left of its tokens; None: all.
        given : mapping
            Keyword arguments of the untouched layer; not changed.
        earlier : (B, m) int64, optional
            Positions of the keys that a cache holds before the call's own, -1 where a row is empty.
        ragged : bool
            Whether any key or query may be empty.
        shared : bool
            Whether ``earlier`` is the same tensor for all layers, so that they share one mask.
        """
        arguments = dict(given)
        if "attention_mask" in given:
            mask = given["attention_mask"]
            arguments["attention_mask"] = self._mask(call, mask, cut, earlier, ragged, shared)
        if cut is not None:
            for name, value in given.items():
                if value is not None and name not in ("attention_mask", "hidden_states"):
                    make = partial(_cut_argument, name, value, call, cut)
                    arguments[name] = call.once((name, id(value), id(cut)), value, make)
        return arguments

    def _mask(
        self,
        call: ForwardCall,
        mask: Any,
        cut: Cut | None,
        earlier: Tensor | None,
        ragged: bool,
        shared: bool,
    ) -> Any:
        # Keys outside the window: without gaps the window is a band of fixed width, which kernels
        # cut out themselves; with gaps the mask has to say it.
        out_of_window = self.window is not None and call.total > self.window
        gaps = ragged or out_of_window
        if mask is None and not gaps:
            return None
        flash = "flash" in str(getattr(self.config, "_attn_implementation", ""))
        padding_only = self.recurrent or flash
        if padding_only and out_of_window:
            raise ModelError(
                f"layer {self.index} slides a window over positions, which flash attention cannot "
                "do where tokens are missing; load the model with attn_implementation='sdpa'"
            )

        def make() -> Any:
            queries = keys = call.positions(cut)
            if earlier is not None:
                keys = torch.cat([earlier.to(queries.device), queries], dim=1)
            return cut_mask(
                mask,
                queries,
                keys,
                call.total,
                gaps=gaps,
                padding_only=padding_only,
                window=self.window,
            )

        if earlier is not None and not shared:
            return make()
        key = ("mask", id(mask), id(cut), id(earlier), self.window, padding_only)
        return call.once(key, (mask, earlier), make)

    def repacked(
        self,
        call: ForwardCall,
        hidden: Tensor,
        positions: Tensor,
        earlier: Tensor | None,
        arguments: dict[str, Any],
    ) -> dict[str, Any]:
        """Count the tokens that are left 0, 1, 2, ... and embed those numbers, where asked for.

        ``positions``, (B, n), are those of the tokens in ``hidden``, (B, n, width), and
        ``earlier``, (B, m), those of the keys that a cache holds before them.
        """
        if self.rotary is None:
            return arguments
        ids = arguments.get("position_ids")
        embeddings = arguments.get("position_embeddings")
        if embeddings is None or (isinstance(ids, Tensor) and ids.ndim > 2):
            raise _no_repacking(type(self.config).__name__)
        numbers = _is_real(call, positions).long().cumsum(1) - 1
        if earlier is not None:
            numbers = numbers + _is_real(call, earlier).sum(1, keepdim=True).to(numbers.device)
        numbers = numbers.clamp_min(0).to(hidden.device)
        embedded = self.rotary(hidden, position_ids=numbers, **self.rotary_options)
        changed = {"position_embeddings": embedded}
        if ids is not None:
            changed["position_ids"] = numbers
        return {**arguments, **changed}


def _cut_argument(name: str, value: Any, call: ForwardCall, cut: Cut) -> Any:
    """Cut one argument of a layer; what is not per token stays as it is."""
    if name == "position_ids":
        return take(value, cut.slots, -1)
    if name.startswith("position_embeddings"):
        return cut_positions(value, cut.slots)
    if name == "cache_position":
        return value[cut.slots[0].clamp_min(0).to(value.device)]
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == call.ids.shape:
        picked = take(value.reshape(*value.shape[:2], -1), cut.slots, -2)
        return picked.view(*picked.shape[:2], *value.shape[2:])
    return value


def _is_real(call: ForwardCall, positions: Tensor) -> Tensor:
    """Whether positions of the conversation hold a token: no padding, no empty row."""
    real = positions >= 0
    if call.valid is None:
        return real
    return real & take(call.valid, positions, -1).to(real.device)


def _rotary(model: Any) -> nn.Module:
    decoder = model.get_decoder()
    for holder in (decoder, getattr(decoder, "model", None)):
        rotary = getattr(holder, "rotary_emb", None)
        # With sections for rows and columns of patches, positions cannot be counted again.
        if isinstance(rotary, nn.Module) and getattr(rotary, "mrope_section", None) is None:
            return rotary
    raise _no_repacking(type(model).__name__)


def _no_repacking(name: str) -> ModelError:
    return ModelError(
        f"positions='repack' needs rotary embeddings of one number per token, which {name} does "
        "not have; use positions='keep'"
    )
