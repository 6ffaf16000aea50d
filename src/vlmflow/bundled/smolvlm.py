"""SmolVLM's architecture on the pretrained decoder: SigLIP-like tower, pixel shuffle, one matrix.

SmolVLM-256M (Marafioti et al. 2025, arXiv 2504.05299) has this very decoder. Its processor is that
of Idefics3, as the first SmolVLM's was; transformers' later one needs torchvision.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from vlmflow.bundled.llava import IMAGE_SIZE, IMAGE_TOKEN, PATCH_SIZE
from vlmflow.bundled.smollm2 import CHAT_TEMPLATE, add_mean_embeddings, load_decoder

SCALE = 2  # patches per side of an image token
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE // SCALE) ** 2  # 36
MARKS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
"""Tokens that the processor writes around a picture, or knows."""


def build_smolvlm() -> tuple[SmolVLMForConditionalGeneration, Idefics3Processor]:
    """Put SmolLM2 into SmolVLM's architecture: tower and connector, random.

    The embeddings of the tokens that SmolLM2 lacks are the mean of all. Pictures are not split into
    tiles: each becomes 36 image tokens of 2 x 2 patches.
    """
    decoder, tokenizer = load_decoder()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN, *MARKS]})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = decoder.config.max_position_embeddings
    model = SmolVLMForConditionalGeneration(_config(tokenizer, decoder.config.to_dict()))
    model.model.text_model.load_state_dict(add_mean_embeddings(decoder, len(tokenizer)))
    model.tie_weights()
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": IMAGE_SIZE},
        max_image_size={"longest_edge": IMAGE_SIZE},
        do_image_splitting=False,
    )
    processor = Idefics3Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_len=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def vision_config() -> SmolVLMVisionConfig:
    """Configure a tower of the size of scenes-llava's."""
    return SmolVLMVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
    )


def _config(tokenizer: Any, decoder: dict[str, Any]) -> SmolVLMConfig:
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(**{**decoder, **ids, "vocab_size": len(tokenizer)})
    return SmolVLMConfig(
        vision_config=vision_config().to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        scale_factor=SCALE,
        tie_word_embeddings=True,
        **ids,
    )
