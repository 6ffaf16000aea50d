"""The engine: hooks on decoder layers that hand on fewer tokens, and nothing else.

A pre-hook of the model looks up where the image tokens of a call are. At each stage's layer a
pre-hook chooses which of them stay and gathers the hidden states; from there on, pre-hooks give
every layer the masks and positions of the tokens that are left. A hook behind the last layer puts
rows back to their places, so that logits have the shape they always had; rows of removed tokens are
zero there. The same is done behind layers where the model adds image features again (DeepStack),
which it does by position. What a cache holds of which token, the cache itself remembers
(:mod:`vlmflow.truncation.cache`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.lvlm.families import family_of
from vlmflow.lvlm.model_parts import decoder_layers, image_token_ids
from vlmflow.truncation.forward_call import Call, Cut
from vlmflow.truncation.language_model_calls import InnerRuns, bound
from vlmflow.truncation.layer_inputs import LayerInputs
from vlmflow.truncation.masks import take
from vlmflow.truncation.oracle import first_token_maps
from vlmflow.truncation.policy import Truncation
from vlmflow.truncation.remainder import fold
from vlmflow.truncation.selection import choose

_truncated: WeakSet[nn.Module] = WeakSet()


@contextmanager
def truncated(model: Any, policy: Truncation) -> Iterator[Any]:
    """Truncate a model for the length of a block, and leave it exactly as found.

    Raises
    ------
    InputError, ModelError
        See :meth:`vlmflow.truncation.policy.Truncation.__call__`.
    """
    layers, tokens = decoder_layers(model), image_token_ids(model)
    policy.check_layers(len(layers), type(model).__name__)
    engine = Engine(model, layers, tokens, policy)
    with ExitStack() as stack:
        stack.enter_context(engine.attached())
        if policy.watched_layers:
            stack.enter_context(
                watch_attention(
                    layers, engine.on_attention, only=policy.watched_layers, cached=True
                )
            )
        yield model


class Engine:
    """The hooks of one truncation, and the call they are in."""

    def __init__(
        self, model: Any, layers: nn.ModuleList, image_tokens: tuple[int, ...], policy: Truncation
    ) -> None:
        self.model = model
        self.layers = layers
        self.policy = policy
        self.stages = [stage.layer for stage in policy.stages]
        self.tokens = image_tokens
        self.family = family_of(model.config.model_type)
        execution = self.family.execution(model.config)
        self.late = execution.late_features
        self.inner = InnerRuns(model, self.begin) if execution.generates_past_forward else None
        self.signature = inspect.signature(model.forward)
        self.call: Call | None = None
        self.measuring = False
        self.before = {index: self._before(index) for index in range(self.stages[0], len(layers))}

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
            handles = [self.model.register_forward_pre_hook(self.on_model, with_kwargs=True)]
            if self.inner is not None:
                handles += self.inner.hooks()
            for index, hook in self.before.items():
                layer = self.layers[index]
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            for index in self.whole_after(len(self.layers)):
                handles.append(self.layers[index].register_forward_hook(self.after(index)))
            for handle in handles:
                stack.callback(handle.remove)
            stack.callback(self.forget)
            yield

    def forget(self) -> None:
        """Drop every reference to a call's tensors."""
        self.call = None

    def on_model(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        """Look up the image tokens of a call."""
        if not self.measuring:
            arguments = bound(self.signature, args, kwargs)
            self.begin(arguments.get("input_ids"), arguments)

    def begin(self, ids: object, arguments: Mapping[str, Any]) -> None:
        """Take up a call: its tokens, and what the model or its language model is called with.

        Raises
        ------
        InputError
            If there are no token ids, or a stage keeps more image tokens than there are.
        """
        self.call = None
        if not isinstance(ids, Tensor):
            raise InputError(
                "a truncation finds image tokens in input_ids, but the model was called without "
                "them; pass input_ids and pixel_values instead of inputs_embeds"
            )
        cache, mask = arguments.get("past_key_values"), arguments.get("attention_mask")
        valid = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = mask.to(ids.device) != 0
        if ids.shape[1] > 1:
            is_image = torch.isin(ids, torch.tensor(self.tokens, device=ids.device))
            images = is_image.sum(1).tolist()
        else:  # a picture is never one token alone, and decoding must not wait for the device
            is_image, images = torch.zeros_like(ids, dtype=torch.bool), [0] * len(ids)
        for count in filter(None, images):
            for stage in self.policy.stages:
                stage.keep.of(count)  # refuses to keep more than there are
        call = Call(
            arguments=arguments,
            ids=ids,
            past=0 if cache is None else int(cache.get_seq_length()),
            valid=valid,
            is_image=is_image,
            images=images,
        )
        if call.has_images and self.policy.is_oracle and call.past == 0:
            self._measure(call)
        self.call = call

    def _measure(self, call: Call) -> None:
        if "inputs_embeds" in call.arguments:
            raise InputError(
                f"rank_by={self.policy.ranking.known_as()!r} runs the whole model first, which "
                f"{type(self.model).__name__} does not do when it generates; choose another ranking"
            )
        real = call.valid if call.valid is not None else torch.ones_like(call.is_image)
        self.measuring = True
        try:
            call.maps = first_token_maps(
                self.model,
                self.layers,
                call.arguments,
                real,
                call.is_image,
                self.policy.ranking.signal,
            )
        finally:
            self.measuring = False

    def on_attention(self, layer: int, attention: AttentionCall, _output: Tensor) -> None:
        """Keep what a ranking will read, until the next layer has read it."""
        if self.call is not None and not self.measuring and self.call.has_images:
            self.call.attention[layer] = attention

    def _before(self, layer: int) -> Callable[..., tuple[Any, Any] | None]:
        """Make the pre-hook of a layer."""
        inputs = LayerInputs.of(
            self.model, self.layers, layer, repack=self.policy.positions == "repack"
        )

        def hook(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            call = self.call
            if self.measuring:
                return None
            if call is None:
                name = type(self.model).__name__
                raise ModelError(
                    f"{name} runs its decoder past its own forward, so a truncation cannot know "
                    "where the image tokens are; nothing was removed"
                )
            hidden = args[0] if args else kwargs["hidden_states"]
            before = call.cut_at(layer - 1)
            if 0 < layer <= self.late and before is not None:
                hidden = take(hidden, before.slots, -2)  # put back behind the layer before
            if layer in self.stages and call.has_images:
                hidden = self._cut(call, layer, hidden)
            cut = inputs.cut(call, hidden, kwargs)
            if args:
                return (hidden, *args[1:]), cut
            return args, {**cut, "hidden_states": hidden}

        return hook

    def _cut(self, call: Call, layer: int, hidden: Tensor) -> Tensor:
        """Hand on the hidden states of the tokens that stay."""
        before = call.cut_at(layer - 1)
        # A layer that is recomputed for its gradient gets what it got the first time.
        cut = next((cut for cut in call.cuts if cut.layer == layer), None)
        if cut is None:
            cut = choose(self.policy, call, layer, hidden.detach(), self.family, self.model.config)
            call.cuts.append(cut)
        if self.policy.remainder != "drop":
            sizes = before.sizes if before is not None else None
            if sizes is None:
                sizes = torch.ones(hidden.shape[:2], device=hidden.device)
            folded = [
                fold(hidden[row], sizes[row], kept, removed, self.policy.remainder)
                for row, (kept, removed) in enumerate(zip(cut.kept, cut.removed, strict=True))
            ]
            hidden = torch.stack([state for state, _ in folded])
            cut.sizes = take(torch.stack([size for _, size in folded]), cut.local, -1)
        return take(hidden, cut.local, -2)

    def whole_after(self, layers: int) -> list[int]:
        """List the layers behind which every token is wanted at its place."""
        return sorted({*range(self.stages[0], min(self.late, layers)), layers - 1})

    def after(self, layer: int) -> Callable[..., Any]:
        """Make the hook that puts the rows that are left back to their places among zeros."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if self.call is None or self.measuring:
                return None
            cut = self.call.cut_at(layer)
            if cut is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            full = _put_back(hidden, cut, self.call.length)
            return (full, *output[1:]) if isinstance(output, tuple) else full

        return hook


def _put_back(hidden: Tensor, cut: Cut, length: int) -> Tensor:
    """(B, n, width) -> (B, length, width)."""
    slots = cut.slots.to(hidden.device)
    # What stands for nothing goes to one more place, which is cut off again.
    places = torch.where(slots < 0, length, slots)[..., None].expand(-1, -1, hidden.shape[-1])
    full = hidden.new_zeros(len(hidden), length + int(cut.ragged), hidden.shape[-1])
    return full.scatter(1, places, hidden)[:, :length]
