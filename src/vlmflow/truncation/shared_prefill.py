"""One prefill of a prompt that several truncations share.

The untouched model runs as always. After each decoder layer, a hook runs the same layer once more
for every truncation that has begun by then, over the tokens that it has left. Picture encoding,
embeddings and the layers before a truncation's first are run once for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.forward_call import ForwardCall
from vlmflow.truncation.policy import Policy


@dataclass(eq=False)
class Branch:
    """One truncation of the prompt."""

    engine: Engine  # Truncates the decoding that follows; its stages are this prefill's, too
    call: ForwardCall  # The prompt, and what the stages have left of it
    cache: Any  # What the truncated model holds of the prompt afterwards
    hidden: Tensor | None = None  # (1, n, width), after the layer that ran last

    @property
    def policy(self) -> Policy:
        """What is removed."""
        return self.engine.stages.policy


class SharedPrefill:
    """A prefill with branches.

    Parameters
    ----------
    engines : sequence of Engine
        One truncation each, of the same model.
    runner : nn.Module
        What is run: the model, or its language model where ``generate`` runs that alone.
    """

    def __init__(self, engines: Sequence[Engine], runner: Any) -> None:
        self.engines, self.runner = engines, runner
        self.branches: list[Branch] = []
        self._running: Branch | None = None
        self._before_late: Tensor | None = None

    def run(self, ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Run one prompt; :attr:`branches` then hold what each truncation has cached.

        Parameters
        ----------
        ids : (1, N) int64
            The prompt.
        inputs : mapping
            What the runner's forward takes, one prompt, with an empty ``past_key_values``.

        Returns
        -------
        (1, 1 + branches, vocabulary)
            Logits after the last token, of the untouched model and then of each branch.

        Raises
        ------
        InputError, ModelError
            As the truncations themselves would raise.
        """
        cache = inputs["past_key_values"]
        self.branches = [
            Branch(engine, engine.read_call(ids, inputs), copy.deepcopy(cache))
            for engine in self.engines
        ]
        watched = set().union(*(branch.policy.watched_layers for branch in self.branches))
        layers = self.engines[0].layers if self.engines else nn.ModuleList()
        with ExitStack() as stack:
            if watched:
                stack.enter_context(
                    watch_attention(layers, self._on_attention, only=watched, cached=True)
                )
            for index, layer in enumerate(layers):
                hook = partial(self._after, index)
                stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
            given = {**inputs, "logits_to_keep": 1 + len(self.branches), "return_dict": True}
            logits: Tensor = self.runner(**given).logits
        for branch in self.branches:
            # Layers before the first stage hold the same keys and values for all.
            first = branch.policy.first_layer
            branch.cache.layers[:first] = [_shared(layer) for layer in cache.layers[:first]]
            branch.hidden = None
        return logits

    def _on_attention(self, layer: int, attention: AttentionCall, _output: Tensor) -> None:
        """Hand attention on to the branches that rank by it: their own, or the untouched run's."""
        for branch in self.branches:
            own = branch is self._running
            first = self._running is None and layer == branch.policy.first_layer - 1
            if layer in branch.policy.watched_layers and (own or first):
                branch.call.note_attention(layer, attention)

    def _after(self, index: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Run a layer for the branches, after it ran for the untouched prompt."""
        main = args[0] if args else kwargs["hidden_states"]
        main_after = output[0] if isinstance(output, tuple) else output
        for branch in self.branches:
            if index >= branch.policy.first_layer:
                self._run(branch, index, module, main, args[1:], kwargs)
        engine = self.engines[0]  # all are of the same model
        self._before_late = main_after if index < engine.stages.late else None
        if index + 1 < len(engine.layers):
            return None
        # Norm and head run once for all: the branches' last rows follow the untouched ones.
        rows = [branch.hidden[:, -1:] for branch in self.branches if branch.hidden is not None]
        joined = torch.cat([main_after, *(row.to(main_after.device) for row in rows)], dim=1)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined

    def _run(
        self, branch: Branch, index: int, module: nn.Module, main: Tensor, args: Any, kwargs: Any
    ) -> None:
        """Run a layer over what a branch has left, (1, n before, width) -> (1, n, width)."""
        if kwargs.get("past_key_values") is None:
            raise ModelError(
                f"layer {index} of {type(branch.engine.model).__name__} is not given a cache by "
                "name, so truncations cannot share a prefill"
            )
        stages, call = branch.engine.stages, branch.call
        hidden = main if branch.hidden is None else branch.hidden
        if branch.hidden is not None and self._before_late is not None:
            # What the model added by slot after the layer before; the branch's rows were put back.
            hidden = hidden + (main - self._before_late.to(main.device)).to(hidden.device)
        hidden = stages.hidden_for(call, index, hidden)
        given = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        given["past_key_values"] = branch.cache
        arguments = stages.arguments_for(call, index, hidden, given)
        self._running = branch
        try:
            # Not through __call__: hooks and checkpointing are the untouched run's.
            output = module.forward(hidden, *args, **arguments)
        finally:
            self._running = None
        hidden = output[0] if isinstance(output, tuple) else output
        whole = index in stages.whole_after
        branch.hidden = stages.put_back(call, index, hidden) if whole else hidden


def _shared(layer: Any) -> Any:
    """Make a cache layer that begins with the same keys and values and grows on its own."""
    if isinstance(layer, DynamicLayer):
        return copy.copy(layer)  # growing makes new tensors
    return copy.deepcopy(layer)
