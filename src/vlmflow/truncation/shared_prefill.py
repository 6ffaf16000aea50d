"""One prefill of a prompt, or of a batch of prompts, that several truncations share.

The untouched model runs as always. After each decoder layer, a hook runs the same layer once more
for every truncation that has begun by then, over the tokens that it has left; those that have left
equally many share a call of the layer. Picture encoding, embeddings and the layers before a
truncation's first are run once for all of them.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.truncation.cache import bare_copy
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.forward_call import ForwardCall
from vlmflow.truncation.layer_batch import (
    CannotBatchError,
    KeysOfMany,
    SideBySide,
    can_share_calls,
)
from vlmflow.truncation.policy import Policy

MOST_ROWS = 1024
"""Tokens that branches may bring to a layer together, where the prompt does not have more."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """What a layer is to be called with for one branch."""

    branch: Branch
    hidden: Tensor  # (B, n, width)
    arguments: Mapping[str, Any]


@dataclass(eq=False)
class Branch:
    """One truncation of the prompts."""

    engine: Engine  # Truncates the decoding that follows; its stages are this prefill's, too
    call: ForwardCall  # The prompts, and what the stages have left of it
    cache: Any  # What the truncated model holds of the prompts afterwards
    hidden: Tensor | None = None  # (B, n, width), after the layer that ran last

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
        self._running: Sequence[Branch] = ()
        self._apart = False  # Whether the layers take something that is not per branch
        self._joined = SideBySide(1)
        self._before_late: Tensor | None = None

    def run(self, ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Run B prompts; :attr:`branches` then hold what each truncation has cached.

        Parameters
        ----------
        ids : (B, N) int64
            The prompts, padded on the left.
        inputs : mapping
            What the runner's forward takes, with an empty ``past_key_values``.

        Returns
        -------
        (B, 1 + branches, vocabulary)
            Logits after the last token, of the untouched model and then of each branch.

        Raises
        ------
        InputError, ModelError
            As the truncations themselves would raise.
        """
        cache = inputs["past_key_values"]
        self.branches, self._joined = [], SideBySide(len(ids))
        same: ForwardCall | None = None
        for engine in self.engines:
            same = engine.read_call(ids, inputs, same)
            self.branches.append(Branch(engine, same, _copy(cache)))
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
        self._joined = SideBySide(1)  # what it has joined is needed no more
        return logits

    def _on_attention(self, layer: int, attention: AttentionCall, _output: Tensor) -> None:
        """Hand attention on to the branches that rank by it: their own, or the untouched run's."""
        for branch in self.branches:
            own = branch in self._running
            first = not self._running and layer == branch.policy.first_layer - 1
            if layer in branch.policy.watched_layers and (own or first):
                branch.call.note_attention(layer, attention)

    def _after(self, index: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Run a layer for the branches, after it ran for the untouched prompt."""
        main = args[0] if args else kwargs["hidden_states"]
        main_after = output[0] if isinstance(output, tuple) else output
        calls = [
            self._call(branch, index, main, kwargs)
            for branch in self.branches
            if index >= branch.policy.first_layer
        ]
        for together in self._batches(calls, index, main.shape[0] * main.shape[1]):
            self._run(together, index, module, args[1:])
        engine = self.engines[0]  # all are of the same model
        self._before_late = main_after if index < engine.stages.late else None
        if index + 1 < len(engine.layers):
            return None
        # Norm and head run once for all: the branches' last rows follow the untouched ones.
        rows = [branch.hidden[:, -1:] for branch in self.branches if branch.hidden is not None]
        joined = torch.cat([main_after, *(row.to(main_after.device) for row in rows)], dim=1)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined

    def _call(
        self, branch: Branch, index: int, main: Tensor, kwargs: Mapping[str, Any]
    ) -> LayerCall:
        """Cut what the untouched layer is called with down to what a branch has left."""
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
        return LayerCall(branch, hidden, stages.arguments_for(call, index, hidden, given))

    def _batches(
        self, calls: Sequence[LayerCall], index: int, length: int
    ) -> list[list[LayerCall]]:
        """Divide a layer's calls into those that are run together.

        Together they bring no more tokens than the prompts' ``length``, or :data:`MOST_ROWS`.
        """
        alone: list[list[LayerCall]] = []
        equal: dict[tuple[int, bool], list[LayerCall]] = defaultdict(list)
        for call in calls:
            watched = index in call.branch.policy.watched_layers
            if self._apart or watched or not can_share_calls(call.branch.cache, index):
                alone.append([call])
            else:
                key = call.hidden.shape[1], call.arguments.get("attention_mask") is None
                equal[key].append(call)
        for same in equal.values():
            tokens = max(1, same[0].hidden.shape[0] * same[0].hidden.shape[1])
            most = max(1, max(length, MOST_ROWS) // tokens)
            alone += [same[start : start + most] for start in range(0, len(same), most)]
        return alone

    def _run(
        self, calls: Sequence[LayerCall], index: int, module: nn.Module, args: tuple[Any, ...]
    ) -> None:
        """Run a layer for branches that have equally many tokens left, (B, n, width) each."""
        self._running = [call.branch for call in calls]
        try:
            if len(calls) == 1:
                # Not through __call__: hooks and checkpointing are the untouched run's.
                output = module.forward(calls[0].hidden, *args, **calls[0].arguments)
            else:
                output = self._run_together(calls, module, args)
        except CannotBatchError:
            self._apart = True
            for call in calls:
                self._run([call], index, module, args)
            return
        finally:
            self._running = ()
        hidden = output[0] if isinstance(output, tuple) else output
        for call, rows in zip(calls, hidden.chunk(len(calls)), strict=True):
            stages, branch = call.branch.engine.stages, call.branch
            whole = index in stages.whole_after
            branch.hidden = stages.put_back(branch.call, index, rows) if whole else rows

    def _run_together(
        self, calls: Sequence[LayerCall], module: nn.Module, args: tuple[Any, ...]
    ) -> Any:
        if args:
            raise CannotBatchError("arguments without names")
        keys = KeysOfMany([call.branch.cache for call in calls])
        arguments = self._joined.arguments([call.arguments for call in calls])
        hidden = torch.cat([call.hidden for call in calls])
        output = module.forward(hidden, **arguments, past_key_values=keys)
        keys.hand_out()
        return output


def _copy(cache: Any) -> Any:
    """Copy a cache that holds nothing yet."""
    if type(cache) is not DynamicCache or cache.offloading:
        return copy.deepcopy(cache)
    bare = bare_copy(cache)
    bare.layers = [
        copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer)
        for layer in cache.layers
    ]
    return bare


def _shared(layer: Any) -> Any:
    """Make a cache layer that begins with the same keys and values and grows on its own."""
    if isinstance(layer, DynamicLayer):
        return copy.copy(layer)  # growing makes new tensors
    return copy.deepcopy(layer)
