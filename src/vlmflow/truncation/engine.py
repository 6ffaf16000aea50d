"""The engine: hooks that run a truncation inside a transformers model.

A pre-hook of the model reads where the image tokens of a call are. From the first stage on,
pre-hooks of the decoder layers pass on what :class:`vlmflow.truncation.stages.Stages` says; a hook
after the last layer (and after those where the model adds image features again) puts rows back to
their slots, so that logits have their usual shape; rows of removed tokens are zero.
A cache itself remembers which tokens its keys belong to (:mod:`vlmflow.truncation.cache`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.lvlm.families import Family, family_of
from vlmflow.lvlm.model_parts import decoder_layers, image_token_ids
from vlmflow.truncation.forward_call import ForwardCall
from vlmflow.truncation.language_model_calls import LanguageModelCalls, bound
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.stages import Stages

_truncated: WeakSet[nn.Module] = WeakSet()


@contextmanager
def truncated(model: Any, policy: Policy) -> Iterator[Any]:
    """Truncate a model for the length of a block, and leave it exactly as found.

    Raises
    ------
    InputError, ModelError
        See :meth:`vlmflow.truncation.truncation.Truncation.__call__`.
    """
    engine = Engine(model, policy)
    with ExitStack() as stack:
        stack.enter_context(engine.attached())
        if policy.watched_layers:
            stack.enter_context(
                watch_attention(
                    engine.layers, engine.on_attention, only=policy.watched_layers, cached=True
                )
            )
        yield model


class Engine:
    """The hooks of one truncation, and the call they are in."""

    def __init__(self, model: Any, policy: Policy, family: Family | None = None) -> None:
        self.model = model
        self.layers, self.image_tokens = decoder_layers(model), image_token_ids(model)
        self.family = family or family_of(model.config.model_type)
        self.stages = Stages(model, self.layers, policy, self.family)
        self.signature = inspect.signature(model.forward)
        self.call: ForwardCall | None = None
        self.measuring = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register the hooks for the length of a block; rankings by attention need more.

        Raises
        ------
        InputError
            If the model is truncated already.
        """
        if self.model in _truncated:
            raise InputError(
                "the model is truncated already; leave that block first, or give one truncation "
                "several stages"
            )
        with ExitStack() as stack:
            _truncated.add(self.model)
            stack.callback(_truncated.discard, self.model)
            handles = [self.model.register_forward_pre_hook(self._on_model, with_kwargs=True)]
            if self.family.execution(self.model.config).generates_past_forward:
                handles += LanguageModelCalls(self.model, self._begin).hooks()
            for index in self.stages.inputs:
                hook = partial(self._before, index)
                handles.append(self.layers[index].register_forward_pre_hook(hook, with_kwargs=True))
            for index in self.stages.whole_after:
                hook = partial(self._after, index)
                handles.append(self.layers[index].register_forward_hook(hook))
            for handle in handles:
                stack.callback(handle.remove)
            stack.callback(setattr, self, "call", None)  # and with it a call's tensors
            yield

    def _on_model(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        """Look up the image tokens of a call."""
        if not self.measuring:
            arguments = bound(self.signature, args, kwargs)
            self._begin(arguments.get("input_ids"), arguments)

    def _begin(self, ids: object, arguments: Mapping[str, Any]) -> None:
        self.call = None
        self.call = self.read_call(ids, arguments)

    def read_call(self, ids: object, arguments: Mapping[str, Any]) -> ForwardCall:
        """Read what the model or its language model is called with, and measure for an oracle.

        Raises
        ------
        InputError
            If there are no token ids, or a stage keeps more image tokens than there are.
        """
        config = self.model.config
        call = ForwardCall.of(ids, arguments, self.image_tokens, self.family, config)
        # An oracle runs the model once more from here: that run is not to be truncated.
        self.measuring = True
        try:
            self.stages.start(self.model, self.layers, call)
        finally:
            self.measuring = False
        return call

    def on_attention(self, layer: int, attention: AttentionCall, _output: Tensor) -> None:
        """Keep what a ranking will read, until the next layer has read it."""
        if self.call is not None and not self.measuring and self.call.has_images:
            self.call.attention[layer] = attention

    def _before(
        self, layer: int, _module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Cut what a layer is called with."""
        if self.measuring:
            return None
        if self.call is None:
            raise ModelError(
                f"{type(self.model).__name__} runs its decoder past its own forward, so a "
                "truncation cannot know where the image tokens are; nothing was removed"
            )
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = self.stages.hidden_for(self.call, layer, hidden)
        arguments = dict(self.stages.arguments_for(self.call, layer, hidden, kwargs))
        if args:
            return (hidden, *args[1:]), arguments
        return args, {**arguments, "hidden_states": hidden}

    def _after(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Put the rows that are left back to their slots."""
        if self.call is None or self.measuring:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        whole = self.stages.put_back(self.call, layer, hidden)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole
