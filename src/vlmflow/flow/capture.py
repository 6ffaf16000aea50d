"""One forward pass and one backward pass per target over a model that is left exactly as found."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.features import watch_features
from vlmflow.flow.recompute import recomputed_layers
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.lvlm.as_found import as_found


class Observer(Protocol):
    """Gets to see every decoder layer at work; called without gradient tracking."""

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """See the inputs of a layer's attention, before any backward pass shows them or instead."""

    def on_attention_gradient(
        self, layer: int, call: AttentionCall, gradient: Tensor, *, first: bool
    ) -> None:
        """See them in each backward pass, with dO, (batch, N, heads, head_dim).

        ``first``: :meth:`on_attention` has not been and will not be called for them.
        """

    def on_features(self, hook: str, layer: int, features: Tensor, gradient: Tensor) -> None:
        """See a hook point's output and its gradient in each backward pass."""


class Capture:
    """Runs the passes inside :func:`capture` and hands what they show to an observer.

    Nothing is held per layer beyond what autograd holds itself: q, k and v are references that are
    dropped as soon as the layer's last backward has run.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, low_memory: bool) -> None:
        self.model = model
        self.layers = layers
        self.low_memory = low_memory
        self.observer: Observer | None = None
        self.watches_attention = True
        self.layers_with_attention: set[int] = set()
        self._calls: dict[int, AttentionCall] = {}
        self._unseen: set[int] = set()
        self._last_pass = False
        self._in_forward = False
        self._batch = 1

    def forward(self, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
        """Run the model once.

        Parameters
        ----------
        inputs : mapping
            What the model's forward takes.
        positions : (K,) int64
            Positions whose logits are needed, the same for every row of the batch.

        Returns
        -------
        (batch, K, vocabulary)
            Logits, with the graph that :meth:`backward` walks.

        Raises
        ------
        ModelError
            If the model's attention cannot be followed.
        """
        self._batch = len(inputs["input_ids"])
        options: dict[str, Any] = {"use_cache": False}
        keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        if keeps:
            options["logits_to_keep"] = positions
        self.layers_with_attention.clear()
        self._in_forward = True
        try:
            logits: Tensor = self.model(**inputs, **options).logits
        finally:
            self._in_forward = False
        if self.watches_attention and not self.layers_with_attention:
            raise ModelError(
                f"no decoder layer of {type(self.model).__name__} calls its attention through "
                f"transformers' AttentionInterface; this model is not supported"
            )
        return logits if keeps else logits[:, positions.to(logits.device)]

    def backward(self, target: Tensor, *, last: bool) -> None:
        """Run one backward pass from a scalar; ``last`` frees the graph on the way."""
        self._last_pass = last
        target.backward(retain_graph=not last)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for layer in sorted(self._unseen):  # a gradient was to come this way, and none did
                if self.observer is not None:
                    self.observer.on_attention(layer, self._calls[layer])
        self._unseen.clear()

    def release(self) -> None:
        """Drop every reference to activations."""
        self._calls.clear()
        self._unseen.clear()
        self.observer = None

    def start_gradient(self, _layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Make the first layer's input the leaf: what is before it is not differentiated."""
        if args:
            return (args[0].detach().requires_grad_(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}

    def on_call(self, layer: int, call: AttentionCall, output: Tensor) -> None:
        """Show an attention call, and its gradient later."""
        if self.observer is None:
            return
        if self._in_forward:
            if layer in self.layers_with_attention:
                raise ModelError(
                    f"layer {layer} of {type(self.model).__name__} calls self-attention twice; "
                    f"this model is not supported"
                )
            self.layers_with_attention.add(layer)
            if output.requires_grad and not self.low_memory:
                self._unseen.add(layer)  # the first backward pass will rebuild the same rows
            else:
                with torch.no_grad():
                    self.observer.on_attention(layer, call)
            if output.requires_grad:
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: self._on_gradient(layer, gradient)
                )
        # A layer that is recomputed shows its q, k, v again right before they are needed.
        if output.requires_grad and not (self.low_memory and self._in_forward):
            self._calls[layer] = call

    def _on_gradient(self, layer: int, gradient: Tensor) -> None:
        drop = self._last_pass or self.low_memory
        call = self._calls.pop(layer) if drop else self._calls[layer]
        first = layer in self._unseen
        self._unseen.discard(layer)
        if self.observer is not None:
            self.observer.on_attention_gradient(layer, call, gradient, first=first)

    def on_feature_gradient(
        self, hook: str, layer: int, features: Tensor, gradient: Tensor
    ) -> None:
        """Show a hook point's output and its gradient."""
        if features.ndim == 2:  # OPT puts the rows of a batch one after the other
            rows = (self._batch, -1, features.shape[-1])
            features, gradient = features.view(rows), gradient.view(rows)
        if self.observer is not None:
            self.observer.on_features(hook, layer, features, gradient)


@contextmanager
def capture(
    model: nn.Module,
    layers: nn.ModuleList,
    observer: Observer,
    *,
    attention: bool = True,
    hooks: Collection[str] = (),
    low_memory: bool = False,
) -> Iterator[Capture]:
    """Freeze the model, watch its decoder layers, and put everything back afterwards.

    Weights are frozen and gradients flow to activations only, from the first decoder layer's input
    on; the vision tower is not differentiated. On exit, also by an exception, the attention
    setting, hooks, ``requires_grad``, training flags, grad mode and config are what they were.

    Parameters
    ----------
    model : nn.Module
        A transformers model with a language-model head.
    layers : ModuleList
        Its decoder layers.
    observer : Observer
        Gets to see the layers.
    attention : bool
        False: only features are shown.
    hooks : collection of str
        Hook points for features, see :func:`vlmflow.flow.features.watch_features`.
    low_memory : bool
        Recompute each layer in the backward pass: activation memory of one layer, plus the inputs
        of all, for about one more forward pass per target.

    Yields
    ------
    Capture
        Runs the passes.
    """
    running = Capture(model, layers, low_memory)
    running.observer = observer
    with ExitStack() as stack:
        stack.callback(running.release)
        stack.enter_context(as_found(model, frozen=True))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if attention:
            stack.enter_context(watch_attention(layers, running.on_call))
        handle = layers[0].register_forward_pre_hook(running.start_gradient, with_kwargs=True)
        stack.callback(handle.remove)
        for hook in hooks:
            on_gradient = partial(running.on_feature_gradient, hook)
            stack.enter_context(watch_features(layers, hook, on_gradient))
        if low_memory:
            stack.enter_context(recomputed_layers(layers))
        running.watches_attention = attention
        yield running
