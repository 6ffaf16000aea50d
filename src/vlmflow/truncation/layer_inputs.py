"""What a decoder layer is called with beside its hidden states, for the tokens that are left."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import ModelError
from vlmflow.truncation.forward_call import Cut, ForwardCall
from vlmflow.truncation.masks import cut_mask, cut_positions, take

RECURRENT = ("linear_attention", "conv")
"""Kinds of layers (``config.layer_types``) that transformers masks as recurrent ones."""


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Cuts the arguments of one decoder layer.

    Parameters
    ----------
    index : int
        Which layer.
    config : object
        What its attention reads ``_attn_implementation`` from.
    window : int, optional
        Its sliding window.
    recurrent : bool
        Whether it goes through the sequence token by token (linear attention, convolution): it
        then knows padding only, and keeps a state instead of keys.
    rotary : nn.Module, optional
        What embeds positions, to number tokens anew; None: they keep their positions.
    rotary_options : dict
        What the rotary module wants to know beside positions.
    """

    index: int
    config: Any
    window: int | None
    recurrent: bool
    rotary: nn.Module | None
    rotary_options: dict[str, Any]

    @classmethod
    def of(cls, model: Any, layers: nn.ModuleList, index: int, *, repack: bool) -> LayerInputs:
        """Read what is needed off a model.

        Raises
        ------
        ModelError
            If positions are to be re-packed and the model does not embed them by rotation.
        """
        found = [getattr(module, "config", None) for module in layers[index].modules()]
        config: Any = next(filter(None, found), model.config.get_text_config())
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        if kinds is not None and kinds[index] != "sliding_attention":
            window = None
        for module in layers[index].modules():
            window = getattr(module, "sliding_window", window)
        rotary = _rotary(model) if repack else None
        # Row and column of a patch cannot be counted anew.
        if getattr(rotary, "mrope_section", None) is not None:
            raise _no_repacking(type(model).__name__)
        options: dict[str, Any] = {}
        if rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters:
            options["layer_type"] = config.layer_types[index]
        recurrent = kinds is not None and kinds[index] in RECURRENT
        return cls(index, config, window, recurrent, rotary, options)

    @property
    def takes_padding_mask(self) -> bool:
        """Whether the layer's masks have two axes, with 0 where nothing stands."""
        flash = "flash" in str(getattr(self.config, "_attn_implementation", ""))
        return self.recurrent or flash

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
        call : ForwardCall
            The model's call.
        cut : Cut, optional
            What is left of its tokens; None: all.
        given : mapping
            Keyword arguments of the untouched layer; not changed.
        earlier : (B, m) int64, optional
            Positions of the keys that a cache holds before the call's own, -1 for nothing.
        ragged : bool
            Whether any key or query may stand for nothing.
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
                    make = partial(cut_argument, name, value, call, cut)
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
        # Keys outside the window: without gaps the window was a band of fixed width, which kernels
        # cut out themselves; with gaps it has to be spelled out.
        out_of_window = self.window is not None and call.total > self.window
        if mask is None and not ragged and not out_of_window:
            return None
        if self.takes_padding_mask and out_of_window:
            raise ModelError(
                f"layer {self.index} slides a window over positions, which flash attention cannot "
                "do where tokens are missing; load the model with attn_implementation='sdpa'"
            )
        rows = call.positions(cut)

        def make() -> Any:
            columns = rows
            if earlier is not None:
                columns = torch.cat([earlier.to(rows.device), rows], dim=1)
            return cut_mask(
                mask,
                rows,
                columns,
                call.total,
                ragged=ragged,
                padding_only=self.takes_padding_mask,
                window=self.window,
                out_of_window=out_of_window,
            )

        if earlier is not None and not shared:
            return make()
        key = ("mask", id(mask), id(cut), id(earlier), self.window)
        return call.once(key, (mask, earlier), make)

    def repacked(
        self,
        call: ForwardCall,
        hidden: Tensor,
        rows: Tensor,
        earlier: Tensor | None,
        arguments: dict[str, Any],
    ) -> dict[str, Any]:
        """Count the tokens that are left 0, 1, 2, ... and embed those numbers, where asked for.

        Parameters
        ----------
        call, hidden
            The call, and the layer's input (B, n, width).
        rows, earlier : (B, n), (B, m) int64
            Positions of the tokens that are left, and of those that a cache holds before them.
        arguments : dict
            From :meth:`arguments`.
        """
        if self.rotary is None:
            return arguments
        ids = arguments.get("position_ids")
        embeddings = arguments.get("position_embeddings")
        if embeddings is None or (isinstance(ids, Tensor) and ids.ndim > 2):
            raise _no_repacking(type(self.config).__name__)
        numbers = _real(call, rows).long().cumsum(1) - 1
        if earlier is not None:
            numbers = numbers + _real(call, earlier).sum(1, keepdim=True).to(numbers.device)
        numbers = numbers.clamp_min(0).to(hidden.device)
        embedded = self.rotary(hidden, position_ids=numbers, **self.rotary_options)
        changed = {"position_embeddings": embedded}
        if ids is not None:
            changed["position_ids"] = numbers
        return {**arguments, **changed}


def cut_argument(name: str, value: Any, call: ForwardCall, cut: Cut) -> Any:
    """Cut one argument of a layer; what is not per token stays as it is."""
    slots = call.slots(cut)
    if name == "position_ids":
        return take(value, slots, -1)
    if name.startswith("position_embeddings"):
        return cut_positions(value, slots)
    if name == "cache_position":
        return value[slots[0].clamp_min(0).to(value.device)]
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == call.ids.shape:
        picked = take(value.reshape(*value.shape[:2], -1), slots, -2)
        return picked.view(*picked.shape[:2], *value.shape[2:])
    return value


def _real(call: ForwardCall, positions: Tensor) -> Tensor:
    """Whether positions of the conversation hold a token: no padding, not nothing."""
    there = positions >= 0
    if call.valid is None:
        return there
    return there & take(call.valid, positions, -1).to(there.device)


def _rotary(model: Any) -> nn.Module:
    decoder = model.get_decoder()
    for holder in (decoder, getattr(decoder, "model", None)):
        rotary = getattr(holder, "rotary_emb", None)
        if isinstance(rotary, nn.Module):
            return rotary
    raise _no_repacking(type(model).__name__)


def _no_repacking(name: str) -> ModelError:
    return ModelError(
        f"positions='repack' needs rotary embeddings of one number per token, which {name} does "
        "not have; use positions='keep'"
    )
