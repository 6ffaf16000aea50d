"""The engine: hooks that run a truncation inside a transformers model.

A pre-hook of the model reads where the image tokens of a call are. From the first stage on,
pre-hooks of the decoder layers pass on what :class:`vlmflow.truncation.stages.Stages` says; a hook
after the last layer (and after those where the model adds image features again) puts rows back to
their slots, so that logits have their usual shape; rows of removed tokens are zero.
A cache itself remembers which tokens its keys belong to (:mod:`vlmflow.truncation.cache`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.lvlm.as_found import bare_model, marked_truncated, uncompiled
from vlmflow.lvlm.families import Family, family_of
from vlmflow.lvlm.model_parts import decoder_layers, image_token_ids
from vlmflow.truncation.cache import TruncatedLayer
from vlmflow.truncation.forward_call import ForwardCall
from vlmflow.truncation.generate_calls import GenerateCalls
from vlmflow.truncation.language_model_calls import LanguageModelCalls, bound
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.run import TruncatedRun
from vlmflow.truncation.stages import Stages
from vlmflow.truncation.static_cache import (
    TruncatedStaticLayer,
    decodes_statically,
    is_static,
    static_layer,
)


@contextmanager
def truncated(model: Any, policy: Policy) -> Iterator[TruncatedRun]:
    """Truncate a model for the length of a block, and leave it exactly as found.

    Raises
    ------
    InputError, ModelError
        See :meth:`vlmflow.truncation.truncation.Truncation.__call__`.
    """
    engine = Engine(bare_model(model), policy)
    with ExitStack() as stack:
        if model is not engine.model:  # a wrapper that was compiled sees no hooks of what it wraps
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(engine.attached())
        yield engine.run
        engine.check_ran()


class Engine:
    """The hooks of one truncation, and the call they are in.

    Parameters
    ----------
    model, policy, family
        The model, what is removed, and the model's family (None: looked up).
    beside : Engine, optional
        An engine of the same model: what is the same for both is taken from it.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        family: Family | None = None,
        *,
        beside: Engine | None = None,
    ) -> None:
        self.model = model
        if beside is None:
            self.layers, self.image_tokens = decoder_layers(model), image_token_ids(model)
            self.family = family or family_of(model.config.model_type)
            self.signature = inspect.signature(model.forward)
        else:
            self.layers, self.image_tokens = beside.layers, beside.image_tokens
            self.family, self.signature = beside.family, beside.signature
        inputs = None if beside is None else beside.stages.inputs
        self.stages: Stages = Stages(model, self.layers, policy, self.family, inputs)
        self.generate = GenerateCalls(model, self.image_tokens, policy)
        self.call: ForwardCall | None = None
        self.measuring = False
        self.run = TruncatedRun(len(self.layers))
        self.prompts = 0  # How many calls brought image tokens
        self._cache: Any = None
        self._watching = ExitStack()
        self._hooked: set[int] = set()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register the hooks for the length of a block; rankings by attention need more.

        Raises
        ------
        InputError
            If the model is truncated already.
        """
        with ExitStack() as stack:
            stack.enter_context(marked_truncated(self.model))
            stack.enter_context(uncompiled(self.model))
            stack.enter_context(self.generate.watched())
            handles = [self.model.register_forward_pre_hook(self._on_model, with_kwargs=True)]
            if self.family.execution(self.model.config).generates_past_forward:
                handles += LanguageModelCalls(self.model, self._begin).hooks()
            for index in self.stages.whole_after:
                hook = partial(self._after, index)
                handles.append(self.layers[index].register_forward_hook(hook))
            handles.append(self.model.register_forward_hook(self._on_result))
            handles.append(self.model.register_forward_hook(self._on_end, always_call=True))
            for handle in handles:
                stack.callback(handle.remove)
            stack.callback(self._leave)
            self._stack = stack
            self._hook(range(self.stages.policy.first_layer, len(self.layers)))
            yield

    def _hook(self, layers: Iterable[int]) -> None:
        """Have layers called with less; those that are so already stay."""
        for index in layers:
            if index not in self._hooked:
                self._hooked.add(index)
                hook = partial(self._before, index)
                handle = self.layers[index].register_forward_pre_hook(hook, with_kwargs=True)
                self._stack.callback(handle.remove)

    def _hook_static(self, cache: Any) -> None:
        """Have layers called with less that an earlier truncation of the conversation cut."""
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, TruncatedStaticLayer) and index not in self._hooked:
                self._hook([index])

    def _leave(self) -> None:
        self._watching.close()
        self.call = self._cache = None  # and with them a call's tensors
        self._hooked.clear()

    def check_ran(self) -> None:
        """Refuse to leave a block in which answers were generated and nothing was removed.

        Raises
        ------
        ModelError
            If ``generate`` was given prompts with pictures and the engine never saw one.
        """
        if self.generate.answered and not self.prompts:
            raise self._past_forward()

    def _on_model(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        """Look up the image tokens of a call."""
        cache, ids = kwargs.get("past_key_values"), args[0] if args else kwargs.get("input_ids")
        if is_static(cache) and isinstance(ids, Tensor) and ids.shape[1] == 1:
            # Traced where decoding is compiled: layers only cut their masks.
            self.call = None
            self._hook_static(cache)
        elif decodes_statically(cache):
            raise InputError(
                "a static cache that was truncated takes one new token at a time; begin another "
                "turn with a new cache, or use cache_implementation='dynamic'"
            )
        elif not self.measuring:
            arguments = bound(self.signature, args, kwargs)
            self._begin(arguments.get("input_ids"), arguments)

    def _begin(self, ids: object, arguments: Mapping[str, Any]) -> None:
        self._watching.close()
        self.call = None
        self.call = call = self.read_call(ids, arguments)
        if call.has_images:
            self.generate.check_watched()
            self._watch()
        self.prompts += call.has_images
        # An earlier truncation of this conversation may have begun before this one's first layer.
        layers = getattr(arguments.get("past_key_values"), "layers", ())
        self._hook(index for index, layer in enumerate(layers) if isinstance(layer, TruncatedLayer))

    def _watch(self) -> None:
        """Watch what a ranking reads for the length of a call with pictures.

        No longer: what decoding is compiled over names the attention that it calls.
        """
        watched = self.stages.policy.watched_layers
        if watched:
            watching = watch_attention(self.layers, self.on_attention, only=watched, cached=True)
            self._watching.enter_context(watching)

    def read_call(
        self, ids: object, arguments: Mapping[str, Any], same: ForwardCall | None = None
    ) -> ForwardCall:
        """Read what the model or its language model is called with, and measure for an oracle.

        ``same`` is the call where another truncation has read it already.

        Raises
        ------
        InputError
            If there are no token ids, or a stage keeps more image tokens than there are.
        """
        config = self.model.config
        call = same.afresh() if same is not None else ForwardCall.of(
            ids, arguments, self.image_tokens, self.family, config,
            self.generate.prompt_end, self.generate.padding,
        )  # fmt: skip
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
            self.call.note_attention(layer, attention)

    def _before(
        self, layer: int, _module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Cut what a layer is called with."""
        if self.measuring:
            return None
        static = static_layer(kwargs.get("past_key_values"), layer)
        if static is not None:
            return args, {**kwargs, "attention_mask": static.cut_mask(kwargs.get("attention_mask"))}
        if self.call is None and is_static(kwargs.get("past_key_values")):
            return None
        if self.call is None:
            raise self._past_forward()
        self._cache = kwargs.get("past_key_values")
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
        last = layer + 1 == len(self.layers)
        if last and self.call.has_images:
            self.run.record(self.call, self._cache)
        whole = self.stages.put_back(self.call, layer, hidden)
        if last:
            self._watching.close()
            if is_static(self._cache):  # decoding needs nothing of the prompt's call
                self.call = None
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def _on_result(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        """Check that a call with pictures was cut."""
        call = self.call
        if not self.measuring and call is not None and call.has_images and not call.reached:
            raise self._past_forward()

    def _on_end(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        """Watch no longer, also where the call has failed."""
        self._watching.close()

    def _past_forward(self) -> ModelError:
        return ModelError(
            f"{type(self.model).__name__} runs its decoder past its own forward, so a truncation "
            "cannot know where the image tokens are; nothing was removed"
        )
