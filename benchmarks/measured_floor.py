"""The least time that removal could take here: the same layers, by hand, on fewer tokens.

"Of what the operations allow" depends on the machine: few rows are bound by reading the weights,
whatever they compute. Here every layer of the model is called as it is, on exactly the tokens that
it would be given, and nothing is chosen, watched or masked for padding. Benchmarks run it in turns
with what they measure. It is for LLaVAs on Llama decoders (:mod:`random_llava`) and one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def embedded(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Run vision tower and projector, and put their features among the words: (1, N, width)."""
    base, config = model.model, model.config
    words: Tensor = base.get_input_embeddings()(inputs["input_ids"])
    features = base.get_image_features(
        pixel_values=inputs["pixel_values"],
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        return_dict=True,
    ).pooler_output
    is_image = inputs["input_ids"] == config.image_token_id
    return words.masked_scatter(is_image[..., None], torch.cat(list(features)).to(words.dtype))


@torch.no_grad()
def truncated_prefill(
    model: Any, inputs: dict[str, Tensor], tokens: Sequence[int], user: int
) -> Tensor:
    """Prefill with so many ``tokens`` in each layer: logits of the last position, (1, 1, V).

    Removed are the tokens before the last ``user`` ones: which image tokens stay costs nothing.
    """
    language = model.model.language_model
    hidden = embedded(model, inputs)
    length = hidden.shape[1]
    positions = torch.arange(length, device=hidden.device)[None]
    cosines, sines = language.rotary_emb(hidden, positions)
    cache = DynamicCache(config=model.config.get_text_config())
    for layer, count in zip(language.layers, tokens, strict=True):
        if count < hidden.shape[1]:
            kept = count - user
            rows = torch.cat([positions[0, :kept], positions[0, -user:]])
            hidden, cosines, sines = (
                tensor.index_select(1, rows) for tensor in (hidden, cosines, sines)
            )
            positions = torch.arange(count, device=hidden.device)[None]
        hidden = layer(hidden, position_embeddings=(cosines, sines), past_key_values=cache)
    logits: Tensor = model.lm_head(language.norm(hidden[:, -1:]))
    return logits


@torch.no_grad()
def shared_prefills(
    model: Any, inputs: dict[str, Tensor], branches: Sequence[tuple[int, int]], user: int
) -> Tensor:
    """Prefill untouched, and beside it branches of ``(layer, tokens)``: fewer tokens from there on.

    Branches of equally many tokens are one batch in every layer. Returns logits of the last
    position, (1 + branches, 1, V): the untouched model's, then the branches' in order of their
    numbers of tokens and layers. Removed are the tokens before the last ``user`` ones.
    """
    language = model.model.language_model
    hidden = embedded(model, inputs)
    length = hidden.shape[1]
    positions = torch.arange(length, device=hidden.device)[None]
    rotary = language.rotary_emb(hidden, positions)
    groups: dict[int, Tensor] = {}
    by_tokens: dict[int, list[int]] = {}
    for first, count in sorted(branches):
        by_tokens.setdefault(count, []).append(first)
    rows = {
        count: torch.cat([positions[0, : count - user], positions[0, -user:]])
        for count in by_tokens
    }
    for index, layer in enumerate(language.layers):
        for count, firsts in by_tokens.items():
            begun = [hidden.index_select(1, rows[count])] * firsts.count(index)
            held = [groups[count]] if count in groups else []
            if not begun and not held:
                continue
            cosines, sines = (part.index_select(1, rows[count]) for part in rotary)
            groups[count] = layer(torch.cat([*held, *begun]), position_embeddings=(cosines, sines))
        hidden = layer(hidden, position_embeddings=rotary)
    last = torch.cat([hidden[:, -1:], *(groups[count][:, -1:] for count in sorted(groups))])
    logits: Tensor = model.lm_head(language.norm(last))
    return logits


@torch.no_grad()
def curve_passes(
    model: Any, inputs: dict[str, Tensor], system: int, after: int, answer: int
) -> Tensor:
    """Run the untouched prompt, and beside it a branch without image tokens from each layer on.

    Returns the logits of the answer's positions, (1 + L, answer, V): the untouched model's, then
    those without image tokens from layer 0, 1, ... on. Branches share the keys of the text before
    the picture, which do not change.
    """
    language = model.model.language_model
    hidden = embedded(model, inputs)
    length = hidden.shape[1]
    positions = torch.arange(length, device=hidden.device)[None]
    cosines, sines = language.rotary_emb(hidden, positions)
    tail = slice(length - after, length)
    branches = hidden[:, tail]
    visible = torch.ones(after, system + after, dtype=torch.bool, device=hidden.device).tril(system)
    for layer in language.layers:
        own = layer(hidden, position_embeddings=(cosines, sines))
        rotary = cosines[:, tail], sines[:, tail]
        prefix = hidden[:, :system], (cosines[:, :system], sines[:, :system])
        branches = _branch_layer(layer, branches, rotary, prefix, visible)
        hidden = own
        # The branch of the next layer leaves the untouched model here.
        branches = torch.cat([branches, hidden[:, tail]])
    last = torch.cat([hidden[:, tail], branches[:-1]])[:, -answer:]
    logits: Tensor = model.lm_head(language.norm(last))
    return logits


def _branch_layer(
    layer: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    prefix: tuple[Tensor, tuple[Tensor, Tensor]],
    visible: Tensor,
) -> Tensor:
    """Call one layer on the text after the picture, with the keys of that before it."""
    attention = layer.self_attn

    def heads(states: Tensor, projection: Any) -> Tensor:
        return projection(states).view(*states.shape[:2], -1, attention.head_dim).transpose(1, 2)

    normed = layer.input_layernorm(hidden)
    queries, keys = apply_rotary_pos_emb(
        heads(normed, attention.q_proj), heads(normed, attention.k_proj), *rotary
    )
    values = heads(normed, attention.v_proj)
    before = layer.input_layernorm(prefix[0])
    # Of the text before the picture the keys alone are needed; projecting them again is part of
    # what a shared cache spares, and small.
    _, keys_before = apply_rotary_pos_emb(
        heads(before, attention.q_proj), heads(before, attention.k_proj), *prefix[1]
    )
    values_before = heads(before, attention.v_proj)
    count = len(hidden)
    keys = torch.cat([keys_before.expand(count, -1, -1, -1), keys], dim=2)
    values = torch.cat([values_before.expand(count, -1, -1, -1), values], dim=2)
    mixed = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, scale=attention.scaling, enable_gqa=True
    )
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    result: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return result
