"""Builders of families that see a picture in tiles, and small as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from transformers import (
    AutoConfig,
    AyaVisionProcessor,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    Lfm2VlProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    PerceptionLMProcessor,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from tests.support.on_torch import on_torch, video_on_torch
from tests.support.tiny import CHAT_TEMPLATE, tiny_tokenizer
from tests.support.tiny_family import (
    LAYERS,
    MIXED,
    PATCH,
    TILE,
    VISION,
    built,
    template,
    text_of,
    unchecked_videos,
)

PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [TILE, 3 * TILE]]


def llava_next(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = AutoConfig.for_model(
        "llava_next",
        text_config={"model_type": "mistral", "sliding_window": None, **text_of(tokenizer)},
        vision_config={"model_type": "clip_vision_model", "image_size": TILE, **VISION},
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    return built(config, tokenizer, attention), processor


def llava_onevision(attention: str, most: int = 9, side: int = TILE) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(extra=("<video>",))
    pinpoints = [[side * rows, side * cols] for rows in (1, 2, 3) for cols in (1, 2, 3)]
    processor = unchecked_videos(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=video_on_torch(
            "llava_onevision", "LlavaOnevisionVideoProcessor", size={"height": side, "width": side}
        ),
        num_image_tokens=(side // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{most}",
        chat_template=template("<image>\n", "<video>\n"),
    )
    config = AutoConfig.for_model(
        "llava_onevision",
        text_config={"model_type": "qwen2", **text_of(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model", "image_size": side, "vision_use_head": False,
            **VISION,
        },
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=f"anyres_max_{most}",
    )  # fmt: skip
    return built(config, tokenizer, attention), processor


def idefics3_tokenizer() -> Any:
    places = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    around = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>")
    return tiny_tokenizer(extra=(*around, *places))


IDEFICS3_IMAGES = {"size": {"longest_edge": 3 * TILE}, "max_image_size": {"longest_edge": TILE}}


def idefics3_config(model_type: str, tokenizer: Any) -> Any:
    return AutoConfig.for_model(
        model_type,
        text_config={"model_type": "llama", **text_of(tokenizer)},
        vision_config={"image_size": TILE, **VISION},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )


def idefics3(attention: str) -> tuple[Any, Any]:
    tokenizer = idefics3_tokenizer()
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(**IDEFICS3_IMAGES),
        tokenizer=tokenizer,
        image_seq_len=(TILE // PATCH // 2) ** 2,
        chat_template=CHAT_TEMPLATE,
    )
    return built(idefics3_config("idefics3", tokenizer), tokenizer, attention), processor


def smolvlm(attention: str) -> tuple[Any, Any]:
    tokenizer = idefics3_tokenizer()
    # It counts the frames of videos in words, and cannot be made without the library for that.
    with mock.patch.object(processing_smolvlm, "num2words", str):
        processor = unchecked_videos(SmolVLMProcessor)(
            image_processor=SmolVLMImageProcessorPil(**IDEFICS3_IMAGES),
            tokenizer=tokenizer,
            video_processor=None,
            image_seq_len=(TILE // PATCH // 2) ** 2,
            chat_template=CHAT_TEMPLATE,
        )
    processor.video_processor = SimpleNamespace(num_frames=1, fps=1)  # asked for by the template
    return built(idefics3_config("smolvlm", tokenizer), tokenizer, attention), processor


def internvl(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = unchecked_videos(InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": TILE, "width": TILE}, max_patches=6
        ),
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_length=(TILE // PATCH // 2) ** 2,
        chat_template=template("<IMG_CONTEXT>"),
    )
    config = AutoConfig.for_model(
        "internvl",
        text_config={"model_type": "qwen2", **text_of(tokenizer)},
        vision_config={**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]},
        image_token_id=processor.image_token_id,
        image_seq_length=processor.image_seq_length,
    )
    return built(config, tokenizer, attention), processor


def aya_vision(attention: str) -> tuple[Any, Any]:
    tokens = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL")
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": TILE, "width": TILE}, max_patches=6
        ),
        tokenizer=tiny_tokenizer(extra=tokens),
        patch_size=PATCH,
        downsample_factor=2,
        img_size=TILE,
        chat_template=CHAT_TEMPLATE,
    )
    config = AutoConfig.for_model(
        "aya_vision",
        text_config={"model_type": "cohere2", "sliding_window": 24, "layer_types": MIXED,
                     **text_of(processor.tokenizer)},
        vision_config={"model_type": "siglip_vision_model", "image_size": TILE,
                       "vision_use_head": False, **VISION},
        image_token_index=processor.image_token_id,
        downsample_factor=2,
        alignment_intermediate_size=32,
    )  # fmt: skip
    return built(config, processor.tokenizer, attention), processor


def cohere2_vision(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    processor = Cohere2VisionProcessor(
        image_processor=on_torch("cohere2_vision", "Cohere2VisionImageProcessor")(
            size={"height": TILE, "width": TILE}, max_patches=6, patch_size=TILE // PATCH // 2
        ),
        tokenizer=tokenizer,
        chat_template=template("<|IMG_PATCH|>"),
    )
    config = AutoConfig.for_model(
        "cohere2_vision",
        text_config={"model_type": "cohere2", "sliding_window": 24, "layer_types": MIXED,
                     **text_of(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", "image_size": TILE,
                       "vision_use_head": False, **VISION},
        image_token_id=processor.image_token_id,
        downsample_factor=2,
        alignment_intermediate_size=32,
    )  # fmt: skip
    return built(config, tokenizer, attention), processor


def perception_lm(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(image_token="<|image|>", video_token="<|video|>")
    images = on_torch("perception_lm", "PerceptionLMImageProcessor")
    processor = unchecked_videos(PerceptionLMProcessor)(
        video_processor=None,
        image_processor=images(tile_size=TILE, max_num_tiles=4),
        tokenizer=tokenizer,
        patch_size=PATCH,
        pooling_ratio=2,
        chat_template=template("<|image|>"),
    )
    # Its own tower needs timm; another of the same kind stands for it.
    tower = AutoConfig.for_model(
        "siglip_vision_model", image_size=TILE, vision_use_head=False, **VISION
    )
    tower.model_args = {"embed_dim": VISION["hidden_size"]}
    config = AutoConfig.for_model(
        "perception_lm",
        text_config={"model_type": "llama", **text_of(tokenizer)},
        vision_config=tower,
        vision_use_cls_token=False,
        projector_pooling_ratio=2,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return built(config, tokenizer, attention), processor


def lfm2_vl(attention: str) -> tuple[Any, Any]:
    places = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5)]
    tokenizer = tiny_tokenizer(
        extra=("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *places)
    )
    processor = Lfm2VlProcessor(
        image_processor=on_torch("lfm2_vl", "Lfm2VlImageProcessor")(
            tile_size=TILE, encoder_patch_size=PATCH, min_image_tokens=4, max_image_tokens=12,
            max_tiles=4, max_pixels_tolerance=1.0,
        ),
        tokenizer=tokenizer,
        chat_template=template("<image>"),
    )  # fmt: skip
    config = AutoConfig.for_model(
        "lfm2_vl",
        text_config={"model_type": "lfm2", "block_multiple_of": 8,
                     "layer_types": ["conv", "full_attention"] * (LAYERS // 2),
                     **text_of(tokenizer)},
        vision_config={"model_type": "siglip2_vision_model", "num_patches": 16,
                       "vision_use_head": False, **VISION},
        image_token_id=processor.image_token_id,
        downsample_factor=2,
        projector_hidden_size=32,
    )  # fmt: skip
    return built(config, tokenizer, attention), processor
