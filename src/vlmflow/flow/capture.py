"""One forward pass and one backward pass per target over a model that is left exactly as found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.features import watch_features
from vlmflow.flow.recompute import recomputed_layers
from vlmflow.flow.sample_record import SampleRecord
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.model_parts import logits_at


class Capture:
    """Runs the passes inside :func:`capture`, and shows every layer to the batch's records.

    Nothing is held per layer beyond what autograd holds itself: q, k and v are references that are
    dropped as soon as the layer's last backward has run.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: nn.ModuleList,
        records: Sequence[SampleRecord],
        *,
        attention: bool,
        low_memory: bool,
        gradients: bool = True,
    ) -> None:
        self.model = model
        self.layers = layers
        self.records = records
        self.watches_attention = attention
        self.low_memory = low_memory
        self.gradients = gradients
        self._layers_with_attention: set[int] = set()
        self._calls: dict[int, AttentionCall] = {}
        self._unseen: set[int] = set()  # Layers whose attention no record has been shown yet
        self._target, self._last_pass, self._in_forward = 0, False, False
        self._has_gradient = False  # Whether any has come that is not 0
        self._batch = 1

    def forward(self, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
        """Run the model once: (batch, K, vocabulary) logits, with the graph of :meth:`backward`.

        ``positions``, (K,) int64, are those whose logits are needed, the same for every row of the
        batch. Raises ModelError if the model's attention or gradients cannot be followed.
        """
        self._batch = len(inputs["input_ids"])
        if self.gradients and any(weights.is_inference() for weights in self.model.parameters()):
            raise ModelError(
                f"{type(self.model).__name__} was made or loaded under torch.inference_mode(), and "
                "no gradient passes through such weights; load it outside of inference_mode, or "
                "measure attention alone with gradients=False"
            )
        self._layers_with_attention.clear()
        self._in_forward = True
        try:
            logits = logits_at(self.model, inputs, positions)
        finally:
            self._in_forward = False
        if self.watches_attention and not self._layers_with_attention:
            raise ModelError(
                f"no decoder layer of {type(self.model).__name__} calls its attention through "
                f"transformers' AttentionInterface; this model is not supported"
            )
        if self.watches_attention:
            without = sorted(set(range(len(self.layers))) - self._layers_with_attention)
            for record in self.records:
                record.check_folds(without)
        return logits

    def backward(self, number: int, target: Tensor, *, last: bool) -> None:
        """Run one backward pass from a scalar; ``last`` frees the graph on the way.

        ``number`` is the target's: 0 for the whole answer, t for its t-th token. Where each token
        has a pass, one of the whole answer shows only what does not add up over tokens.
        """
        self._target, self._last_pass = number, last
        if target.requires_grad:
            target.backward(retain_graph=not last)  # type: ignore[no-untyped-call]
        if not self._has_gradient:
            raise ModelError(
                f"no gradient passes through {type(self.model).__name__}: its layers are quantised "
                "in a way that has no backward pass; load it unquantised, quantise its weights "
                "alone, or measure attention alone with gradients=False"
            )
        with torch.no_grad():
            for layer in sorted(self._unseen):  # a gradient was to come this way, and none did
                self._show_attention(layer, self._calls[layer])
        self._unseen.clear()
        for record in self._records_of_target():
            record.on_pass_end(number)

    def release(self) -> None:
        """Drop every reference to activations."""
        self._calls.clear()
        self._unseen.clear()
        self.records = ()

    def start_gradient(self, _layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Make the first layer's input the leaf: what is before it is not differentiated."""
        hidden = (args[0] if args else kwargs["hidden_states"]).detach()
        for record in self.records:
            hidden = record.moved(hidden)
        leaf = hidden.requires_grad_()
        return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": leaf})

    def on_call(self, layer: int, call: AttentionCall, output: Tensor) -> None:
        """Show an attention call, and its gradient later."""
        if self._in_forward:
            if layer in self._layers_with_attention:
                raise ModelError(
                    f"layer {layer} of {type(self.model).__name__} calls self-attention twice; "
                    f"this model is not supported"
                )
            self._layers_with_attention.add(layer)
            with torch.no_grad():  # at once: what is folded comes in the order of the layers
                for record in self.records:
                    record.on_heads(layer, call)
            if output.requires_grad and not self.low_memory:
                self._unseen.add(layer)  # the first backward pass will rebuild the same rows
            else:
                with torch.no_grad():
                    self._show_attention(layer, call)
            if output.requires_grad:
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: self._on_gradient(layer, gradient)
                )
        # A layer that is recomputed shows its q, k, v again right before they are needed.
        if output.requires_grad and not (self.low_memory and self._in_forward):
            self._calls[layer] = call

    def _show_attention(self, layer: int, call: AttentionCall) -> None:
        for record in self.records:
            record.on_attention(layer, call)

    def _on_gradient(self, layer: int, gradient: Tensor | None) -> None:
        if gradient is None:  # from an operation without a backward pass
            return
        self._has_gradient = self._has_gradient or bool(gradient.any())
        drop = self._last_pass or self.low_memory
        call = self._calls.pop(layer) if drop else self._calls[layer]
        first = layer in self._unseen
        self._unseen.discard(layer)
        for record in self._records_of_target():
            if self._target or not record.per_token:
                record.on_attention_gradient(layer, self._target, call, gradient, first=first)
            record.on_head_gradients(layer, self._target, call, gradient)

    def on_feature_gradient(
        self, hook: str, layer: int, features: Tensor, gradient: Tensor
    ) -> None:
        """Show a hook point's output and its gradient."""
        self._has_gradient = self._has_gradient or bool(gradient.any())
        if features.ndim == 2:  # OPT puts the rows of a batch one after the other
            rows = (self._batch, -1, features.shape[-1])
            features, gradient = features.view(rows), gradient.view(rows)
        for record in self._records_of_target():
            if self._target or not record.per_token:
                record.on_features(hook, layer, self._target, features, gradient)

    def _records_of_target(self) -> list[SampleRecord]:
        """Rows of the batch whose answer has the token that the pass explains."""
        return [record for record in self.records if self._target <= record.tokens]


@contextmanager
def capture(
    model: nn.Module,
    layers: nn.ModuleList,
    records: Sequence[SampleRecord],
    *,
    attention: bool = True,
    hooks: Mapping[str, Collection[int]] | None = None,
    low_memory: bool = False,
    gradients: bool = True,
) -> Iterator[Capture]:
    """Freeze the model, watch its decoder layers, and put everything back afterwards.

    Weights are frozen and gradients flow to activations only, from the first decoder layer's input
    on; the vision tower is not differentiated. On exit, also by an exception, the attention
    setting, hooks, ``requires_grad``, training flags, grad mode and config are what they were.

    Parameters
    ----------
    model, layers : nn.Module, nn.ModuleList
        A transformers model with a language-model head, and its decoder layers.
    records : sequence of SampleRecord
        One per row of the batch: they are shown the layers.
    attention : bool
        False: only features are shown.
    hooks : mapping of str to collection of int, optional
        Hook points for features, see :func:`vlmflow.flow.features.watch_features`, and the layers
        where they are watched.
    low_memory : bool
        Recompute each layer in the backward pass: activation memory of one layer, plus the inputs
        of all, for about one more forward pass per target.
    gradients : bool
        False: only the forward pass is followed.
    """
    running = Capture(
        model, layers, records, attention=attention, low_memory=low_memory, gradients=gradients
    )
    with ExitStack() as stack:
        stack.callback(running.release)
        stack.enter_context(as_found(model, frozen=True))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        if attention:
            stack.enter_context(watch_attention(layers, running.on_call))
        if not gradients:
            yield running
            return
        handle = layers[0].register_forward_pre_hook(running.start_gradient, with_kwargs=True)
        stack.callback(handle.remove)
        for hook, watched in (hooks or {}).items():
            on_gradient = partial(running.on_feature_gradient, hook)
            stack.enter_context(watch_features(layers, hook, on_gradient, watched))
        if low_memory:
            stack.enter_context(recomputed_layers(layers))
        yield running
