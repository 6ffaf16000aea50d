"""Builders of families that see a picture in its own shape."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    PixtralImageProcessorPil,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

from tests.support.on_torch import video_on_torch
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_family import (
    LAYERS,
    PATCH,
    TILE,
    VISION,
    built,
    template,
    text_of,
    unchecked_videos,
)

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

# Videos count the pixels of all frames (Qwen2-VL: of each), so that these are small as pictures.
FRAME_PIXELS = {"shortest_edge": 256, "longest_edge": 1024}
VIDEO_PIXELS = {"shortest_edge": 512, "longest_edge": 4096}


def qwen_processor(processor_class: type, image_processor: Any, video_processor: Any) -> Any:
    around = "<|vision_start|><|{}_pad|><|vision_end|>"
    return unchecked_videos(processor_class)(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(extra=QWEN_TOKENS),
        video_processor=video_processor,
        chat_template=template(around.format("image"), around.format("video")),
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


def qwen2_videos() -> Any:
    return video_on_torch(
        "qwen2_vl", "Qwen2VLVideoProcessor",
        patch_size=PATCH, merge_size=2, size=FRAME_PIXELS, cap_pixels_per_frame=False,
    )  # fmt: skip


def qwen3_videos() -> Any:
    return video_on_torch(
        "qwen3_vl", "Qwen3VLVideoProcessor",
        patch_size=PATCH, merge_size=2, size=VIDEO_PIXELS, cap_pixels_per_frame=False,
    )  # fmt: skip


def qwen2_vl(attention: str) -> tuple[Any, Any]:
    processor = qwen_processor(Qwen2VLProcessor, qwen2_images(), qwen2_videos())
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
    processor = qwen_processor(Qwen2_5_VLProcessor, qwen2_images(), qwen2_videos())
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
    processor = qwen_processor(Qwen3VLProcessor, qwen2_images(), qwen3_videos())
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
    processor = qwen_processor(Qwen3VLProcessor, qwen2_images(), qwen3_videos())
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
    processor = unchecked_videos(Glm4vProcessor)(
        image_processor=Glm4vImageProcessorPil(
            patch_size=PATCH, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}
        ),
        tokenizer=tokenizer,
        video_processor=video_on_torch(
            "glm4v", "Glm4vVideoProcessor", patch_size=PATCH, merge_size=2, size=VIDEO_PIXELS
        ),
        chat_template=template(
            "<|begin_of_image|><|image|><|end_of_image|>",
            "<|begin_of_video|><|video|><|end_of_video|>",
        ),
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
