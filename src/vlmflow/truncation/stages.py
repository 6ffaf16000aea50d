"""What a truncation does to a forward pass, as steps that need no hooks.

What runs the layers (the engine's hooks, a shared prefill) asks in this order: which tokens stay
and what the layer is given (:meth:`Stages.hidden_for`), what goes with it
(:meth:`Stages.arguments_for`), and what goes back to its place after it (:meth:`Stages.put_back`).
The index spaces are those of :mod:`vlmflow.truncation.forward_call`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.lvlm.families import Family
from vlmflow.lvlm.model_parts import logit_lens
from vlmflow.truncation.cache import hold_fewer_keys
from vlmflow.truncation.forward_call import Cut, ForwardCall
from vlmflow.truncation.layer_inputs import LayerInputs
from vlmflow.truncation.masks import take
from vlmflow.truncation.oracle import first_token_maps
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.remainder import fold
from vlmflow.truncation.selection import choose, leaving
from vlmflow.truncation.static_cache import TruncatedStaticLayer, is_static


class Stages:
    """One truncation on one model.

    ``inputs`` are those of another truncation of the model, by layer and whether it re-packs
    positions; what is missing is added.

    Raises
    ------
    InputError, ModelError
        If a layer is out of range, or positions cannot be re-packed.
    """

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        policy: Policy,
        family: Family,
        inputs: dict[tuple[int, bool], LayerInputs] | None = None,
    ) -> None:
        policy.check_layers(len(layers), type(model).__name__)
        self.policy = policy
        self.starts = frozenset(stage.layer for stage in policy.stages)
        self._make_inputs = partial(LayerInputs, model, layers)
        self.inputs = {} if inputs is None else inputs
        for index in range(policy.first_layer, len(layers)):
            self._inputs_of(index)
        # After so many layers, the first ones, the model adds image features again, by slot.
        self.late = family.execution(model.config).late_features
        # Layers after which every token is wanted at its slot again: those, and the last one,
        # because norm and head expect the logits' usual shape.
        self._lens = partial(logit_lens, model)
        last = len(layers) - 1
        self.whole_after = {*range(policy.first_layer, min(self.late, last)), last}

    def start(self, model: Any, layers: nn.ModuleList, call: ForwardCall) -> None:
        """Check a call before its first layer, and measure what an oracle ranking reads.

        The measuring runs the whole model: hooks on it must do nothing meanwhile.

        Raises
        ------
        InputError
            If a stage keeps more image tokens than there are, or an oracle cannot be asked.
        """
        for count in filter(None, call.images):
            for stage in self.policy.stages:
                stage.keep.of(count)
        if call.has_images and is_static(call.arguments.get("past_key_values")):
            self._check_static(call)
        if not (call.has_images and self.policy.is_oracle and call.past == 0):
            return
        if "inputs_embeds" in call.arguments:
            raise InputError(
                f"rank_by={self.policy.ranking.known_as()!r} runs the whole model first, which "
                f"{type(model).__name__} does not do when it generates; choose another ranking"
            )
        if call.prompt < call.length:
            raise InputError(
                f"rank_by={self.policy.ranking.known_as()!r} reads the model's own first answer, "
                "which a call with candidates for it does not have; generate without "
                "prompt_lookup_num_tokens and assistant_model, or choose another ranking"
            )
        signal = self.policy.ranking.signal
        if signal not in call.measured:
            call.measured[signal] = first_token_maps(model, layers, call, signal)
        call.maps = call.measured[signal]

    def hidden_for(self, call: ForwardCall, layer: int, hidden: Tensor) -> Tensor:
        """Return the hidden states that a layer is given: (B, n before, width) -> (B, n, width)."""
        before = call.cut_at(layer - 1)
        # After a layer of `late` all slots were put back for the model to add to: cut them again.
        if 0 < layer <= self.late and before is not None:
            hidden = take(hidden, before.slots, -2)
        if layer in self.starts and call.has_images:
            hidden = self._cut(call, layer, before, hidden)
        if layer in self.policy.noted_layers and call.has_images:
            call.noted[layer] = hidden.detach()
        return hidden

    def _cut(self, call: ForwardCall, layer: int, before: Cut | None, hidden: Tensor) -> Tensor:
        """Leave what the stage at a layer leaves: (B, n before, width) -> (B, n, width)."""
        # A layer that is recomputed for its gradient gets what it got the first time.
        if layer not in call.reached:
            call.reached.add(layer)
            attention, states = call.attention.pop(layer - 1, None), hidden.detach()
            leaves = leaving(self.policy, call, layer, states, attention, self._lens)
            if any(leaves):
                call.cuts.append(choose(self.policy, call, layer, states, attention, leaves))
                call.left.update({row: layer for row, leaves_now in enumerate(leaves)
                                  if leaves_now and row not in call.left})  # fmt: skip
        cut = call.cut_at(layer)
        if cut is None or cut.layer < layer:  # no prompt leaves here
            return hidden
        if self.policy.remainder != "drop":
            hidden, sizes = _folded(hidden, before, cut, self.policy.remainder)
            cut.sizes = take(sizes, cut.local, -1)
        return take(hidden, cut.local, -2)

    def arguments_for(
        self, call: ForwardCall, layer: int, hidden: Tensor, given: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return what goes with them: masks, positions, and a cache that can hold fewer keys.

        ``given``, the keyword arguments of the untouched layer, is not changed, but for its cache,
        whose layer is made ready for the next keys. ``hidden`` is from :meth:`hidden_for`.
        """
        cut = call.cut_at(layer)
        # The cache first: what it holds already decides which keys the mask must speak of.
        held = hold_fewer_keys(given.get("past_key_values"), layer, fewer=cut is not None)
        if cut is None and held is None:
            return given
        call.given[layer] = positions = call.positions(cut)
        if isinstance(held, TruncatedStaticLayer):
            return self._static_arguments(call, layer, given, held)
        ragged = cut is not None and cut.ragged
        earlier = None
        if held is not None:
            earlier = held.positions
            held.expect(positions, call.length, ragged=ragged)
            ragged = held.ragged
        inputs = self._inputs_of(layer)
        arguments = inputs.arguments(call, cut, given, earlier=earlier, ragged=ragged)
        if held is not None:  # numbers count on where keys have left a sliding window
            earlier = held.all_positions
        return inputs.repacked(call, hidden, positions, earlier, arguments)

    def _inputs_of(self, layer: int) -> LayerInputs:
        """Return a layer's inputs, made on the first call.

        An earlier truncation of the conversation may have begun before this one's first layer.
        """
        key = layer, self.policy.positions == "repack"
        if key not in self.inputs:
            self.inputs[key] = self._make_inputs(layer, repack=key[1])
        return self.inputs[key]

    def _check_static(self, call: ForwardCall) -> None:
        """Refuse what a static cache cannot, before anything is put into it."""
        if call.past:
            raise InputError(
                "a static cache is truncated with its first prompt only; begin another turn with "
                "a new cache, or use cache_implementation='dynamic'"
            )
        if self.policy.positions == "repack":
            raise InputError(
                "positions='repack' counts tokens anew at every step, which a static cache cannot; "
                "use positions='keep', or cache_implementation='dynamic'"
            )
        if self.policy.is_oracle:
            raise InputError(
                f"rank_by={self.policy.ranking.known_as()!r} runs the model without its cache "
                "first, which the masks of a static one do not fit; choose another ranking, or "
                "use cache_implementation='dynamic'"
            )

    def _static_arguments(
        self, call: ForwardCall, layer: int, given: Mapping[str, Any], held: TruncatedStaticLayer
    ) -> Mapping[str, Any]:
        """Return what goes with a prompt's tokens that stay where the cache is a static one."""
        cut = call.cut_at(layer)
        assert cut is not None
        held.expect(call.positions(cut), call.length)
        rest = {name: value for name, value in given.items() if name != "attention_mask"}
        arguments = self._inputs_of(layer).arguments(call, cut, rest)
        mask = held.cut_mask(given.get("attention_mask"), cut.slots)
        return {**arguments, "attention_mask": mask}

    def put_back(self, call: ForwardCall, layer: int, hidden: Tensor) -> Tensor:
        """Put rows back to their slots among zeros: (B, n, width) -> (B, N, width)."""
        cut = call.cut_at(layer)
        if cut is None:
            return hidden
        slots = cut.slots.to(hidden.device)
        # Empty rows go to one more slot, which is cut off again.
        places = torch.where(slots < 0, call.length, slots)[..., None]
        places = places.expand(-1, -1, hidden.shape[-1])
        whole = hidden.new_zeros(len(hidden), call.length + int(cut.ragged), hidden.shape[-1])
        return whole.scatter(1, places, hidden)[:, : call.length]


def _folded(hidden: Tensor, before: Cut | None, cut: Cut, remainder: str) -> tuple[Tensor, Tensor]:
    """Put removed tokens into kept ones: states (B, n before, width) and sizes (B, n before)."""
    sizes = before.sizes if before is not None else None
    if sizes is None:
        sizes = torch.ones(hidden.shape[:2], device=hidden.device)
    folded = [
        fold(hidden[row], sizes[row], kept, removed, remainder, pictures)
        for row, (kept, removed, pictures) in enumerate(
            zip(cut.kept, cut.removed, cut.pictures, strict=True)
        )
    ]
    return torch.stack([states for states, _ in folded]), torch.stack([size for _, size in folded])
