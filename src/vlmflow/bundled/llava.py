"""What the bundled LLaVAs have in common: pictures of 144 image tokens, and a small CLIP tower."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

IMAGE_SIZE, PATCH_SIZE, IMAGE_TOKEN = 168, 14, "<image>"  # 12 x 12 = 144 image tokens


def llava_processor(tokenizer: Any, chat_template: str) -> LlavaProcessor:
    """Build a processor with CLIP's steps (shortest edge, centre crop) at these models' size."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template,
    )


def llava_config(tokenizer: Any, decoder: dict[str, Any]) -> LlavaConfig:
    """Configure a tower of width 192 in front of a decoder with the vocabulary of a tokenizer."""
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=192,
        ),
        text_config=LlamaConfig(**{**decoder, **ids, "vocab_size": len(tokenizer)}),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **ids,
    )
