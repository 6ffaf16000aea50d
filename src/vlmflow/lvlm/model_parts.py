"""Where the parts of a transformers LVLM are: its image tokens and its decoder layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlmflow.errors import ModelError


def image_token_id(model: Any) -> int:
    """Find the id that stands for image features in ``input_ids``; raise ModelError without one."""
    config, name = model.config, type(model).__name__
    if getattr(config.get_text_config(), "cross_attention_layers", None):
        raise ModelError(
            f"{name} looks at its pictures through cross-attention layers: the decoder's sequence "
            "holds no image tokens, so there is nothing to measure or remove there"
        )
    for attribute in ("image_token_id", "image_token_index"):
        token = getattr(config, attribute, None)
        if token is not None:
            return int(token)
    raise ModelError(
        f"{name} has no image_token_id in its config, so its image tokens cannot be found: "
        "it does not put image features into the decoder's sequence"
    )


def image_token_ids(model: Any) -> tuple[int, ...]:
    """Find every id that stands for image features: the pictures' first, then the videos'."""
    video = getattr(model.config, "video_token_id", None)
    return (image_token_id(model), *(() if video is None else (int(video),)))


def decoder_layers(model: Any) -> nn.ModuleList:
    """Find the list of decoder layers of the language model; raise ModelError without one."""
    for holder in _holders(model):
        layers = getattr(holder, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return layers
    raise ModelError(
        f"the decoder layers of {type(model).__name__} cannot be found: "
        f"its decoder {type(model.get_decoder()).__name__} has no list of layers"
    )


def _holders(model: Any) -> tuple[Any, ...]:
    """Return what may hold the decoder's layers and its final norm."""
    decoder = model.get_decoder()
    inner = getattr(decoder, "model", None)
    return decoder, inner, *(getattr(outer, "decoder", None) for outer in (decoder, inner))


def logit_lens(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Map hidden states of any layer, (..., width), through final norm and output matrix.

    Raises
    ------
    ModelError
        If either cannot be found.
    """
    head = model.get_output_embeddings()
    norms = (
        getattr(holder, name, None)
        for holder in _holders(model)
        for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm")
    )
    norm = next((part for part in norms if isinstance(part, nn.Module)), None)
    if norm is None or head is None:
        raise ModelError(
            f"{type(model).__name__} shows no final norm or no output matrix, which the logit lens "
            "goes through"
        )
    logits: torch.Tensor = head(norm(states))
    return logits


def input_device(model: Any) -> torch.device:
    """Find where inputs go: the device on which the token embeddings run."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)  # accelerate's, where weights are offloaded
    for part in (hook, *getattr(hook, "hooks", ())):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    weight: torch.Tensor = embeddings.weight
    return weight.device if weight.device.type != "meta" else torch.device(model.device)


def max_positions(model: Any) -> int | None:
    """Find how many tokens a prompt may have, rope scaling included; None: the config is silent."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    ropes = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in ropes:  # else one for each kind of layer
        ropes = {"": ropes}
    for rope in ropes.values():
        if isinstance(rope, dict) and rope.get("rope_type", "default") != "default":
            original = rope.get("original_max_position_embeddings") or limit
            limit = max(limit, original * (rope.get("factor") or 1))
    return int(limit)


def logits_at(model: Any, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """Run a model without a cache: its logits at ``positions``, (K,), as (B, K, vocabulary)."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=positions).logits
        return kept
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits[:, positions.to(logits.device)]
