"""Calls of ``generate`` on a truncated model, which alone know where the prompt ends.

Assisted decoding verifies guesses in the very call that reads the prompt, and a prefill in chunks
never sees the prompt as a whole. Only ``generate`` knows the prompt, so it is watched: for the
length of a truncation the model's own ``generate`` is wrapped.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.language_model_calls import bound
from vlmflow.truncation.policy import Policy

_REFUSED = {
    "prefill_chunk_size": "a truncation chooses among all image tokens of a prompt",
    "assistant_early_exit": "the draft would be truncated with the model",
}


class GenerateCalls:
    """Knows the prompt of the ``generate`` call that runs."""

    def __init__(self, model: Any, image_tokens: tuple[int, ...], policy: Policy) -> None:
        self.model, self.image_tokens, self.policy = model, image_tokens, policy
        self.prompt_end: int | None = None  # Position after the prompt; None: outside of generate
        # Of that prompt: (B, N), 0 at padding. The model may be given other forms of it
        self.padding: Tensor | None = None
        self.answered = 0  # Calls that gave answers to prompts with image tokens

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch ``model.generate`` for the length of a block."""
        if not hasattr(self.model, "generate"):
            yield
            return
        own = vars(self.model)
        before = own.get("generate")
        original: Callable[..., Any] = self.model.generate
        signature = inspect.signature(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            outer = self.prompt_end, self.padding
            # By name: a generation config may come second without one.
            has_images = self._begin(bound(signature, args, kwargs))
            try:
                answers = original(*args, **kwargs)
            finally:
                self.prompt_end, self.padding = outer
            self.answered += has_images
            return answers

        own["generate"] = generate
        try:
            yield
        finally:
            if before is None:
                own.pop("generate", None)
            else:
                own["generate"] = before

    def check_watched(self) -> None:
        """Refuse a ``generate`` that runs past the one that is watched.

        Raises
        ------
        InputError
            If the method was taken from the model before the block, or from its class.
        """
        if self.prompt_end is not None:
            return
        methods = [
            vars(kind)["generate"] for kind in type(self.model).__mro__ if "generate" in vars(kind)
        ]
        codes = {inspect.unwrap(method).__code__ for method in methods}
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            if frame.f_code in codes and frame.f_locals.get("self") is self.model:
                raise InputError(
                    "this generate was taken from the model before the truncation began, or from "
                    "its class, so the truncation cannot know where the prompt ends; call "
                    "model.generate inside the block"
                )

    def _begin(self, kwargs: Mapping[str, Any]) -> bool:
        """Note where the prompt ends; say whether it brings image tokens that no cache holds."""
        for name, reason in _REFUSED.items():
            if self._setting(kwargs, name) is not None:
                raise InputError(
                    f"{name} cannot be used under a truncation: {reason}; generate without it"
                )
        self.policy.check_decoding(partial(self._setting, kwargs))
        ids = kwargs.get("input_ids")
        if ids is None:
            ids = kwargs.get("inputs")
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            self.prompt_end = self.padding = None
            return False
        mask = kwargs.get("attention_mask")
        self.padding = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        # With a cache, the ids may be the new ones alone; the mask is the whole conversation's.
        whole = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else 0
        self.prompt_end = max(ids.shape[1], whole)
        past = getattr(kwargs.get("past_key_values"), "get_seq_length", int)()
        ids = ids[:, max(0, ids.shape[1] - (self.prompt_end - past)) :]
        tokens = ids.new_tensor(self.image_tokens)
        return bool((ids[..., None] == tokens).any())

    def _setting(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """Read what ``generate`` will go by: its own argument, or a generation config's."""
        configs = (kwargs.get("generation_config"), self.model.generation_config)
        held = (getattr(config, name, None) for config in configs)
        return kwargs.get(name, next((value for value in held if value is not None), None))
