"""A randomly initialised LLaVA of any size, and a clock: what the benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN, VOCABULARY = 31_999, 32_000
PATCH = 14


def build(
    *, layers: int, width: int, heads: int, key_heads: int, side: int, dtype: str, device: str
) -> Any:
    """Build a LLaVA for pictures of ``side`` pixels; its vision tower is small."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=side,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            max_position_embeddings=8192,
        ),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(
        config, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    return model.to(device).eval()


def prompt_inputs(model: Any, before: int, pictures: int, after: int) -> dict[str, Tensor]:
    """Random text, then noise pictures, then random text again."""
    generator = torch.Generator().manual_seed(0)
    side = model.config.vision_config.image_size
    text = torch.randint(0, IMAGE_TOKEN, (1, before + after), generator=generator)
    image = torch.full((1, pictures * model.config.image_seq_length), IMAGE_TOKEN)
    ids = torch.cat([text[:, :before], image, text[:, before:]], dim=1)
    pixels = torch.randn(pictures, 3, side, side, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["pixel_values"] = pixels.to(model.dtype)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def clocked(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Run once: seconds, and what it returned."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, result
