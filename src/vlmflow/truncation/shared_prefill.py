"""One prefill of a prompt that several truncations share.

The untouched model runs as always. Behind each decoder layer, a hook runs the same layer once more
for every truncation that has begun by then, over the tokens that it has left. Picture encoding,
embeddings and the layers before a truncation's first are run once for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.lvlm.families import family_of
from vlmflow.lvlm.model_parts import decoder_layers, image_token_ids
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.policy import Truncation


@dataclass(eq=False)
class Branch:
    """One truncation of the prompt.

    Parameters
    ----------
    policy : Truncation
        What is removed.
    engine : Engine
        Chooses and cuts.
    cache : Cache
        What the truncated model holds of the prompt afterwards.
    hidden : (1, n, width), optional
        Behind the layer that ran last.
    """

    policy: Truncation
    engine: Engine
    cache: Any
    hidden: Tensor | None = None


@dataclass(eq=False)
class Fork:
    """A prefill with branches.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    policies : sequence of Truncation
        One branch each.
    runner : nn.Module
        What is run: the model, or its language model where ``generate`` runs that alone.
    """

    model: Any
    policies: Sequence[Truncation]
    runner: Any
    branches: list[Branch] = field(default_factory=list)
    _running: Branch | None = None
    _before_late: Tensor | None = None
    _layers: int = 0
    _late: int = 0

    def prefill(self, ids: Tensor, inputs: Mapping[str, Any]) -> Any:
        """Run one prompt; :attr:`branches` then hold what each truncation has cached.

        Parameters
        ----------
        ids : (1, N) int64
            The prompt.
        inputs : mapping
            What the runner's forward takes, one prompt, with an empty ``past_key_values``.

        Returns
        -------
        output
            The model's, whose ``logits`` are (1, 1 + branches, vocabulary): those behind the last
            token for the untouched model, then for each branch.

        Raises
        ------
        InputError, ModelError
            As the truncations themselves would raise.
        """
        layers = decoder_layers(self.model)
        self._layers = len(layers)
        execution = family_of(self.model.config.model_type).execution(self.model.config)
        self._late = execution.late_features
        self.branches = [self._branch(policy, layers, ids, inputs) for policy in self.policies]
        looked_at = set().union(*(branch.policy.watched_layers for branch in self.branches))
        with ExitStack() as stack:
            if looked_at:
                stack.enter_context(
                    watch_attention(layers, self._on_attention, only=looked_at, cached=True)
                )
            for index, layer in enumerate(layers):
                hook = self._after(index, last=index + 1 == len(layers))
                stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
            given = {**inputs, "logits_to_keep": 1 + len(self.branches), "return_dict": True}
            output = self.runner(**given)
        whole = inputs["past_key_values"].layers
        for branch in self.branches:
            before = branch.policy.first_layer
            branch.cache.layers[:before] = [_shared(layer) for layer in whole[:before]]
            branch.engine.forget()
            branch.hidden = None
        return output

    def _branch(
        self, policy: Truncation, layers: nn.ModuleList, ids: Tensor, inputs: Mapping[str, Any]
    ) -> Branch:
        policy.check_layers(len(layers), type(self.model).__name__)
        engine = Engine(self.model, layers, image_token_ids(self.model), policy)
        cache = copy.deepcopy(inputs["past_key_values"])  # empty still
        engine.begin(ids, inputs)
        return Branch(policy, engine, cache)

    def _on_attention(self, layer: int, attention: AttentionCall, output: Tensor) -> None:
        """Hand attention on to whoever ranks by it."""
        if self._running is not None:
            if layer in self._running.policy.watched_layers:
                self._running.engine.on_attention(layer, attention, output)
            return
        for branch in self.branches:
            if layer in branch.policy.watched_layers and layer == branch.policy.first_layer - 1:
                branch.engine.on_attention(layer, attention, output)

    def _after(self, index: int, *, last: bool) -> Any:
        """Make the hook that runs a layer for the branches."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            main = args[0] if args else kwargs["hidden_states"]
            hidden = output[0] if isinstance(output, tuple) else output
            for branch in self.branches:
                if index >= branch.policy.first_layer:
                    self._run(branch, index, module, main, args[1:], kwargs)
            self._before_late = hidden if index < self._late else None
            if not last:
                return None
            rows = [one.hidden[:, -1:] for one in self.branches if one.hidden is not None]
            joined = torch.cat([hidden, *(row.to(hidden.device) for row in rows)], dim=1)
            return (joined, *output[1:]) if isinstance(output, tuple) else joined

        return hook

    def _run(
        self, branch: Branch, index: int, module: nn.Module, main: Tensor, args: Any, kwargs: Any
    ) -> None:
        """Run a layer over what a branch has left."""
        if kwargs.get("past_key_values") is None:
            raise ModelError(
                f"layer {index} of {type(self.model).__name__} is not given a cache by name, so "
                "truncations cannot share a prefill"
            )
        begins = index == branch.policy.first_layer
        hidden = main if begins else branch.hidden
        if not begins and self._before_late is not None and hidden is not None:
            # What the model added to image tokens behind the layer before; their places are kept.
            hidden = hidden + (main - self._before_late.to(main.device)).to(hidden.device)
        given = {
            name: value
            for name, value in {**kwargs, "past_key_values": branch.cache}.items()
            if name != "hidden_states"
        }
        cut = branch.engine.before[index](module, (hidden, *args), given)
        found_args, found_kwargs = ((hidden, *args), given) if cut is None else cut
        self._running = branch
        try:
            # Not through __call__: hooks and checkpointing are the untouched run's.
            found = module.forward(*found_args, **found_kwargs)
        finally:
            self._running = None
        if index in branch.engine.whole_after(self._layers):
            whole = branch.engine.after(index)(module, args, found)
            found = found if whole is None else whole
        branch.hidden = found[0] if isinstance(found, tuple) else found


def _shared(layer: Any) -> Any:
    """Make a cache layer that begins with the same keys and values and grows on its own."""
    if isinstance(layer, DynamicLayer):
        return copy.copy(layer)  # growing makes new tensors
    return copy.deepcopy(layer)
