"""One tiny model of every family, with random weights and its real processor, built in code.

The list `FAMILIES` drives every test that must hold for all of them: a new family is one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    Blip2Processor,
    BlipImageProcessorPil,
    Cohere2VisionProcessor,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InstructBlipProcessor,
    InternVLProcessor,
    Lfm2VlProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    PaliGemmaProcessor,
    PerceptionLMProcessor,
    PixtralImageProcessorPil,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.smolvlm import processing_smolvlm

from vlmflow.lvlm.anatomy import image_token_id
from vlmflow.lvlm.model import LVLM

from .on_torch import on_torch
from .tiny import CHAT_TEMPLATE, tiny_llava, tiny_tokenizer

PATCH = 4
LAYERS = 4

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
}
"""A decoder whose attention, drawn this wide, is far from uniform."""

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "initializer_range": 0.15,
}

SIZES = ((30, 20), (17, 41))
"""Width and height of the pictures that a test of a batch looks at."""


@dataclass(frozen=True)
class TinyFamily:
    """How to build the model of one `model_type`.

    `build` takes the attention implementation. `slack` is by how many tower pixels a change may
    wander before it reaches a token, where pictures or features are resized more than once.
    `variant` tells several models of one type apart. `single` is False where transformers itself
    fails on a picture of one token. `first_attention` is the first layer that has attention,
    `norm` the one that its MLP reads. `queries`: one picture per prompt, no token has a place, and
    `generate` runs the decoder past the model's forward. `one_shape`: transformers takes pictures
    of one shape only in a prompt or batch.
    """

    model_type: str
    build: Callable[[str], tuple[Any, Any]]
    slack: float = 0.0
    variant: str = ""
    single: bool = True
    first_attention: int = 0
    norm: str = "post_attention_layernorm"
    queries: bool = False
    one_shape: bool = False

    @property
    def name(self) -> str:
        return f"{self.model_type}, {self.variant}" if self.variant else self.model_type

    def lvlm(self, attention: str = "sdpa") -> LVLM:
        """The same weights whatever the attention."""
        return LVLM(*self.build(attention), name=self.name)


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise of this (width, height)."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def template(placeholder: str) -> str:
    """LLaVA's chat template with another image placeholder."""
    return CHAT_TEMPLATE.replace("<image>\n", placeholder)


def built(config: Any, tokenizer: Any, attention: str, seed: int = 0) -> Any:
    """A model with random weights in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    # Random weights would answer with anything.
    model.generation_config.suppress_tokens = [image_token_id(model)]
    return model.eval()


def text_of(tokenizer: Any, **options: Any) -> dict[str, Any]:
    """The decoder's settings for a tokenizer."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    own = {name: getattr(tokenizer, name) for name in ids}
    return {**TEXT, **own, "vocab_size": len(tokenizer), **options}


def without_videos(processor_class: type) -> type:
    """The processor as it is, but for its video processor, which needs torchvision."""

    class WithoutVideos(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor" and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    WithoutVideos.__name__ = processor_class.__name__
    return WithoutVideos


def llava(attention: str) -> tuple[Any, Any]:
    return tiny_llava(kv_heads=2, attn_implementation=attention)


QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_processor(processor_class: type, image_processor: Any) -> Any:
    return without_videos(processor_class)(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(extra=QWEN_TOKENS),
        video_processor=None,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))
    return dict(zip(names, ids, strict=True))


MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1]}


def qwen2_images() -> Any:
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
    )


def qwen2_vl(attention: str) -> tuple[Any, Any]:
    processor = qwen_processor(Qwen2VLProcessor, qwen2_images())
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config=text_of(processor.tokenizer, rope_parameters=MROPE),
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": PATCH, "initializer_range": 0.15,
        },
        **qwen_ids(processor.tokenizer),
    )  # fmt: skip
    return built(config, processor.tokenizer, attention), processor


def qwen2_5_vl(attention: str) -> tuple[Any, Any]:
    processor = qwen_processor(Qwen2_5_VLProcessor, qwen2_images())
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config=text_of(processor.tokenizer, rope_parameters=MROPE),
        vision_config={
            "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32,
            "num_heads": 2, "patch_size": PATCH, "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1], "initializer_range": 0.15,
        },
        **qwen_ids(processor.tokenizer),
    )  # fmt: skip
    return built(config, processor.tokenizer, attention), processor


QWEN3_VISION = {
    "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
    "patch_size": PATCH, "num_position_embeddings": 16, "initializer_range": 0.15,
}  # fmt: skip

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def qwen3_vl(attention: str, experts: bool = False) -> tuple[Any, Any]:
    processor = qwen_processor(Qwen3VLProcessor, qwen2_images())
    config = AutoConfig.for_model(
        "qwen3_vl_moe" if experts else "qwen3_vl",
        text_config=text_of(
            processor.tokenizer, rope_parameters=dict(MROPE), **(EXPERTS if experts else {})
        ),
        vision_config={**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        **qwen_ids(processor.tokenizer),
    )
    return built(config, processor.tokenizer, attention), processor


def qwen3_5(attention: str, experts: bool = False) -> tuple[Any, Any]:
    processor = qwen_processor(Qwen3VLProcessor, qwen2_images())
    shared = {"shared_expert_intermediate_size": 16, **EXPERTS}
    config = AutoConfig.for_model(
        "qwen3_5_moe" if experts else "qwen3_5",
        text_config=text_of(
            processor.tokenizer,
            rope_parameters={**MROPE, "partial_rotary_factor": 1.0},
            layer_types=["linear_attention", "full_attention"] * (LAYERS // 2),
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            **(shared if experts else {}),
        ),
        vision_config=QWEN3_VISION,
        **qwen_ids(processor.tokenizer),
    )
    return built(config, processor.tokenizer, attention), processor


GLM_TOKENS = ("<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>",
              "<|end_of_video|>", "<|video|>")  # fmt: skip


def glm4v(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(extra=GLM_TOKENS)
    processor = without_videos(Glm4vProcessor)(
        image_processor=Glm4vImageProcessorPil(
            patch_size=PATCH, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}
        ),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    names = ("image_start", "image_end", "image", "video_start", "video_end", "video")
    ids = tokenizer.convert_tokens_to_ids(list(GLM_TOKENS))
    config = AutoConfig.for_model(
        "glm4v",
        text_config=text_of(tokenizer, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}),
        vision_config={
            "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32,
            "num_heads": 2, "patch_size": PATCH, "image_size": TILE, "initializer_range": 0.15,
        },
        **{f"{name}_token_id": number for name, number in zip(names, ids, strict=True)},
    )  # fmt: skip
    return built(config, tokenizer, attention), processor


TILE = 4 * PATCH

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


def llava_onevision(attention: str, most: int = 9) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(extra=("<video>",))
    pinpoints = [[TILE * rows, TILE * cols] for rows in (1, 2, 3) for cols in (1, 2, 3)]
    processor = without_videos(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": TILE, "width": TILE}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=None,
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{most}",
        chat_template=CHAT_TEMPLATE,
    )
    config = AutoConfig.for_model(
        "llava_onevision",
        text_config={"model_type": "qwen2", **text_of(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model", "image_size": TILE, "vision_use_head": False,
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
        processor = without_videos(SmolVLMProcessor)(
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
    processor = without_videos(InternVLProcessor)(
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


def perception_lm(attention: str) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(image_token="<|image|>", video_token="<|video|>")
    images = on_torch("perception_lm", "PerceptionLMImageProcessor")
    processor = without_videos(PerceptionLMProcessor)(
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


MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)


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


class WithRowBreaks(ProcessorMixin):
    """What `PixtralProcessor` makes of its image processor and tokenizer; it needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, patch_size=16, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size = patch_size
        self.image_token = "[IMG]"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    def _process_images(self, images, **options):
        return super()._process_images(images, **{**options, "patch_size": self.patch_size})

    def replace_image_token(self, image_inputs, image_idx, **_options):
        height, width = image_inputs["image_sizes"][image_idx]
        row = self.image_token * (int(width) // self.patch_size)
        rows = [row] * (int(height) // self.patch_size)
        return "[IMG_BREAK]".join(rows) + "[IMG_END]"


def with_row_breaks(merge: int) -> Any:
    return WithRowBreaks(
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": 48}, patch_size={"height": PATCH, "width": PATCH}
        ),
        tokenizer=tiny_tokenizer(extra=("[IMG]", "[IMG_BREAK]", "[IMG_END]")),
        patch_size=PATCH * merge,
        chat_template=template("[IMG]"),
    )


def pixtral(attention: str) -> tuple[Any, Any]:
    processor = with_row_breaks(1)
    config = AutoConfig.for_model(
        "llava",
        text_config={"model_type": "mistral", "sliding_window": None,
                     **text_of(processor.tokenizer)},
        vision_config={"model_type": "pixtral", "image_size": 48, "head_dim": 8, **VISION},
        image_token_index=processor.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    return built(config, processor.tokenizer, attention), processor


def mistral3(attention: str) -> tuple[Any, Any]:
    processor = with_row_breaks(2)
    config = AutoConfig.for_model(
        "mistral3",
        text_config={"model_type": "mistral", "sliding_window": None,
                     **text_of(processor.tokenizer)},
        vision_config={"model_type": "pixtral", "image_size": 48, "head_dim": 8, **VISION},
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
    )  # fmt: skip
    return built(config, processor.tokenizer, attention), processor


FAMILIES = (
    TinyFamily("llava", llava),
    TinyFamily("llava", pixtral, variant="Pixtral's tower"),
    TinyFamily("llava_next", llava_next),
    TinyFamily("llava_onevision", llava_onevision),
    # Interpolated features draw on the patches around; a patch is PATCH pixels.
    TinyFamily(
        "llava_onevision", partial(llava_onevision, most=2), slack=PATCH, variant="shrunk tiles"
    ),
    TinyFamily("qwen2_vl", qwen2_vl),
    TinyFamily("qwen2_5_vl", qwen2_5_vl),
    TinyFamily("qwen3_vl", qwen3_vl),
    TinyFamily("qwen3_vl_moe", partial(qwen3_vl, experts=True)),
    TinyFamily("qwen3_5", qwen3_5, first_attention=1),
    TinyFamily("qwen3_5_moe", partial(qwen3_5, experts=True), first_attention=1),
    TinyFamily("glm4v", glm4v),
    # Three resizes one after the other: each may be a pixel off.
    TinyFamily("idefics3", idefics3, slack=2),
    TinyFamily("smolvlm", smolvlm, slack=2),
    TinyFamily("internvl", internvl),
    TinyFamily("aya_vision", aya_vision, norm="input_layernorm"),
    TinyFamily("cohere2_vision", cohere2_vision, norm="input_layernorm"),
    TinyFamily("deepseek_vl", deepseek_vl),
    TinyFamily("lfm2_vl", lfm2_vl, first_attention=1, norm="ffn_norm"),
    TinyFamily("perception_lm", perception_lm, one_shape=True),
    TinyFamily("gemma3", gemma3),
    TinyFamily("gemma3", partial(gemma3, crops=True), variant="pan and scan"),
    TinyFamily("paligemma", paligemma),
    TinyFamily("mistral3", mistral3, single=False),
    TinyFamily("blip-2", blip2, queries=True, norm="final_layer_norm"),
    TinyFamily("instructblip", instructblip, queries=True),
)
