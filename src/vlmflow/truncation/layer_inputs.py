"""What a decoder layer is called with beside its hidden states, for the tokens that are left."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import ModelError
from vlmflow.truncation.cache import TruncatedLayer, is_truncated, truncated_layer
from vlmflow.truncation.forward_call import Call, Cut
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

    def cut(self, call: Call, hidden: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for the tokens that are left.

        Parameters
        ----------
        call : Call
            The model's call.
        hidden : (B, n, width)
            The layer's input, cut already.
        given : dict
            Keyword arguments of the layer; not changed.
        """
        cut = call.cut_at(self.index)
        cache, held = given.get("past_key_values"), None
        if cache is not None and (cut is not None or is_truncated(cache, self.index)):
            held = truncated_layer(cache, self.index)
        if cut is None and held is None:
            return given
        rows = call.positions(cut)
        ragged = cut is not None and cut.ragged
        if held is not None:
            held.expect(rows, call.length, ragged=ragged)
            ragged = held.ragged
        cuts = dict(given)
        if "attention_mask" in given:
            cuts["attention_mask"] = self._mask(
                call, given["attention_mask"], rows, held, cut, ragged
            )
        if cut is not None:
            for name, value in given.items():
                if value is not None and name not in ("attention_mask", "hidden_states"):
                    make = partial(cut_argument, name, value, call, cut)
                    cuts[name] = call.once((name, id(value), id(cut)), value, make)
        if self.rotary is not None:
            self._repack(call, hidden, rows, held, cuts)
        return cuts

    def _mask(
        self,
        call: Call,
        mask: Any,
        rows: Tensor,
        held: TruncatedLayer | None,
        cut: Cut | None,
        ragged: bool,
    ) -> Any:
        out_of_window = self.window is not None and call.total > self.window
        if mask is None and not ragged and not out_of_window:
            return None
        if self.takes_padding_mask and out_of_window:
            raise ModelError(
                f"layer {self.index} slides a window over positions, which flash attention cannot "
                "do where tokens are missing; load the model with attn_implementation='sdpa'"
            )

        def make(columns: Tensor) -> Any:
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

        earlier = held.positions if held is not None else None
        if earlier is not None:
            return make(torch.cat([earlier.to(rows.device), rows], dim=1))
        return call.once(("mask", id(mask), id(cut), self.window), mask, lambda: make(rows))

    def _repack(
        self,
        call: Call,
        hidden: Tensor,
        rows: Tensor,
        held: TruncatedLayer | None,
        cuts: dict[str, Any],
    ) -> None:
        """Count the tokens that are left 0, 1, 2, ... and embed those numbers."""
        ids = cuts.get("position_ids")
        if cuts.get("position_embeddings") is None or (isinstance(ids, Tensor) and ids.ndim > 2):
            raise _no_repacking(type(self.config).__name__)
        numbers = _real(call, rows).long().cumsum(1) - 1
        earlier = held.positions if held is not None else None
        if earlier is not None:
            numbers = numbers + _real(call, earlier).sum(1, keepdim=True).to(numbers.device)
        numbers = numbers.clamp_min(0).to(hidden.device)
        assert self.rotary is not None
        cuts["position_embeddings"] = self.rotary(
            hidden, position_ids=numbers, **self.rotary_options
        )
        if ids is not None:
            cuts["position_ids"] = numbers


def cut_argument(name: str, value: Any, call: Call, cut: Cut) -> Any:
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


def _real(call: Call, positions: Tensor) -> Tensor:
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
