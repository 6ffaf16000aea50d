"""How large keys and values are, from a model's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import ModelError
from vlmflow.truncation.flops import DecoderShape

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class CacheSizes:
    """Bytes of one token's keys and values, and how many tokens each layer holds at most."""

    token_bytes: int  # In one layer
    windows: tuple[int | None, ...]  # By layer; None: all

    @classmethod
    def of(cls, model: Any, layers: Any, value_bytes: int) -> CacheSizes:
        """Read a model's config; ``value_bytes`` is the size of one number in the cache.

        Raises
        ------
        ModelError
            If a layer keeps something else than keys and values of every head.
        """
        shape = DecoderShape.of(model, layers)
        config = model.config.get_text_config()
        if getattr(config, "kv_lora_rank", None):
            raise ModelError(
                f"{type(model).__name__} caches compressed keys and values (kv_lora_rank="
                f"{config.kv_lora_rank}), which are not counted here"
            )
        kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * shape.layers)
        other = next((kind for kind in kinds if kind not in ATTENTION), None)
        if other is not None:
            raise ModelError(
                f"layer {kinds.index(other)} of {type(model).__name__} is {other!r}, which keeps a "
                "state instead of keys and values and is not counted here"
            )
        window = getattr(config, "sliding_window", None)
        chunk = getattr(config, "attention_chunk_size", None)
        limits = {"full_attention": None, "sliding_attention": window, "chunked_attention": chunk}
        return cls(
            token_bytes=2 * shape.key_heads * shape.head_dim * value_bytes,
            windows=tuple(limits[kind] for kind in kinds),
        )

    def layer_bytes(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the bytes of each layer that took so many tokens."""
        return tuple(
            self.token_bytes * (count if window is None else min(count, window))
            for count, window in zip(tokens, self.windows, strict=True)
        )
