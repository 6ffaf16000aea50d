"""Calls of a language model that ``generate`` runs by itself, past the whole model's forward.

BLIP-2's ``generate`` embeds the prompt, puts the picture's features into it, and hands embeddings
alone to its language model: only the embedding still sees the token ids.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vlmflow.truncation.static_cache import is_static


def bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """Name the arguments of a call, those that the signature gathers among them."""
    arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    return arguments


class LanguageModelCalls:
    """Reports every run of ``model.language_model`` outside of the model's own forward.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The whole model.
    begin : callable
        Called before such a run with its token ids (None: unknown) and its arguments.
    """

    def __init__(
        self, model: Any, begin: Callable[[Tensor | None, Mapping[str, Any]], None]
    ) -> None:
        self.model = model
        self.begin = begin
        self.signature = inspect.signature(model.language_model.forward)
        self.in_forward = False
        self.embedded: Tensor | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Register the hooks."""
        model = self.model
        return [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward, always_call=True),
            model.get_input_embeddings().register_forward_pre_hook(self._on_embedding),
            model.language_model.register_forward_pre_hook(self._on_run, with_kwargs=True),
        ]

    def _before_forward(self, _model: nn.Module, _args: Any) -> None:
        self.in_forward = True

    def _after_forward(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        self.in_forward = False

    def _on_embedding(self, _embedding: nn.Module, args: Any) -> None:
        if args and args[0].ndim == 2 and args[0].shape[1] > 1:
            self.embedded = args[0]

    def _on_run(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        if self.in_forward:
            return
        embedded = kwargs.get("inputs_embeds")
        one = isinstance(embedded, Tensor) and embedded.shape[1] == 1
        if one and is_static(kwargs.get("past_key_values")):  # traced where it is compiled
            return
        arguments = bound(self.signature, args, kwargs)
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        if ids is None and isinstance(embeds, Tensor):
            ids = self._ids_of(embeds)
        self.begin(ids, arguments)

    def _ids_of(self, embeds: Tensor) -> Tensor | None:
        """Return what was embedded last, if that is it; a row per beam, as ``generate`` has."""
        ids = self.embedded
        if ids is None or ids.shape[1] != embeds.shape[1] or len(embeds) % len(ids):
            return None
        return ids.repeat_interleave(len(embeds) // len(ids), dim=0)
