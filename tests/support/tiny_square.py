"""Builders of families that see a picture in one square, as tokens of a place or as queries."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    Blip2Processor,
    BlipImageProcessorPil,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    InstructBlipProcessor,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
)

from tests.support.tiny import tiny_llava, tiny_tokenizer
from tests.support.tiny_family import MIXED, PATCH, TILE, VISION, built, template, text_of


def llava(attention: str) -> tuple[Any, Any]:
    return tiny_llava(kv_heads=2, attn_implementation=attention)


def deepseek_vl(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(image_token="<image_placeholder>")
    processor = DeepseekVLProcessor(
        image_processor=DeepseekVLImageProcessorPil(
            size={"height": TILE, "width": TILE}, min_size=PATCH
        ),
        tokenizer=tokenizer,
        num_image_tokens=(TILE // PATCH) ** 2,
        chat_template=template("<image_placeholder>"),
    )
    config = AutoConfig.for_model(
        "deepseek_vl",
        text_config={"model_type": "llama", **text_of(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", "image_size": TILE,
                       "vision_use_head": False, **VISION},
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    return built(config, tokenizer, attention), processor


def gemma3(attention: str, crops: bool = False) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": TILE, "width": TILE}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )
    if crops:
        processor.images_kwargs = {
            **processor.images_kwargs, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8,
        }  # fmt: skip
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text_of(
            tokenizer,
            sliding_window=24,
            layer_types=MIXED,
            query_pre_attn_scalar=8,
        ),
        vision_config={
            "model_type": "siglip_vision_model", "image_size": TILE, "vision_use_head": False,
            **VISION,
        },
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        mm_tokens_per_image=4,
    )  # fmt: skip
    model = built(config, tokenizer, attention)
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    with torch.no_grad():  # zeros, until it is trained
        projection.copy_(torch.randn(projection.shape, generator=torch.manual_seed(1)))
    return model, processor


def paligemma(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(image_token="<image>")
    images = SiglipImageProcessorPil(size={"height": TILE, "width": TILE})
    images.image_seq_length = (TILE // PATCH) ** 2
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    config = AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", **text_of(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model", "image_size": TILE, "vision_use_head": False,
            **VISION,
        },
        image_token_index=tokenizer.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )  # fmt: skip
    return built(config, tokenizer, attention), processor


QUERIES = 5


def blip2_config(model_type: str, tokenizer: Any, text_config: dict[str, Any]) -> Any:
    return AutoConfig.for_model(
        model_type,
        text_config=text_config,
        vision_config={"image_size": TILE, **VISION},
        qformer_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "encoder_hidden_size": 16, "vocab_size": len(tokenizer),
            "initializer_range": 0.15,
        },
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip


def with_queries(config: Any, tokenizer: Any, attention: str) -> Any:
    model = built(config, tokenizer, attention)
    queries = (model if hasattr(model, "query_tokens") else model.model).query_tokens
    with torch.no_grad():  # zeros, until they are trained
        queries.copy_(torch.randn(queries.shape, generator=torch.manual_seed(1)))
    return model


def blip2(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    processor = Blip2Processor(
        image_processor=BlipImageProcessorPil(size={"height": TILE, "width": TILE}),
        tokenizer=tokenizer,
        num_query_tokens=QUERIES,
    )
    wanted = text_of(tokenizer)
    text_config = {
        "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.15,
        **{name: value for name, value in wanted.items() if name in
           ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
            "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    }  # fmt: skip
    config = blip2_config("blip-2", tokenizer, text_config)
    return with_queries(config, tokenizer, attention), processor


def instructblip(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    processor = InstructBlipProcessor(
        image_processor=BlipImageProcessorPil(size={"height": TILE, "width": TILE}),
        tokenizer=tokenizer,
        qformer_tokenizer=tiny_tokenizer(),
        num_query_tokens=QUERIES,
    )
    text_config = {"model_type": "llama", **text_of(tokenizer)}
    config = blip2_config("instructblip", tokenizer, text_config)
    return with_queries(config, tokenizer, attention), processor
