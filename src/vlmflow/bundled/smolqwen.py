"""Qwen2.5-VL's architecture on the pretrained decoder: pictures of any shape, and M-RoPE.

Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923) has a Llama with biases on queries, keys and values
and positions on three axes. Without biases, and for text alone, that is the decoder as it is. Its
processor is that of PaddleOCR-VL, which writes the same prompts and takes no videos: Qwen's own
needs torchvision, for its videos.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from vlmflow.bundled.llava import PATCH_SIZE
from vlmflow.bundled.smollm2 import CHAT_TEMPLATE, add_mean_embeddings, load_decoder

MERGE = 2  # patches per side of an image token
TOKEN_PIXELS = (PATCH_SIZE * MERGE) ** 2
MIN_TOKENS, MAX_TOKENS = 25, 256  # of a picture; at their own size, scenes have 41 to 150
MARKS = ("<|vision_start|>", "<|vision_end|>")
NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}

_AROUND = f"{MARKS[0]}<|{{}}_pad|>{MARKS[1]}\n"
TEMPLATE = CHAT_TEMPLATE.replace(
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}",
    "{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{_AROUND.format('image')}"
    f"{{% elif part['type'] == 'video' %}}{_AROUND.format('video')}{{% endif %}}"
    "{% endfor %}",
)


def build_qwen() -> tuple[Qwen2_5_VLForConditionalGeneration, PaddleOCRVLProcessor]:
    """Put SmolLM2 into Qwen2.5-VL's architecture: tower and merger, random.

    The embeddings of the tokens that SmolLM2 lacks are the mean of all, and its queries, keys and
    values get biases of 0. Pictures keep their shape, and their size where that gives 25 to 256
    image tokens of 2 x 2 patches.
    """
    decoder, base = load_decoder()
    # Made anew: only so are names of tokens, by which the processor finds them, saved with it.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        bos_token=base.bos_token,
        eos_token=base.eos_token,
        unk_token=base.unk_token,
        pad_token="<|endoftext|>",
        extra_special_tokens=[*MARKS, *NAMED.values()],
        model_max_length=decoder.config.max_position_embeddings,
        padding_side=base.padding_side,
        **NAMED,
    )
    model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer, decoder.config.to_dict()))
    language = model.model.language_model
    weights = add_mean_embeddings(decoder, len(tokenizer))
    biases = {
        name: value.new_zeros(value.shape)
        for name, value in language.state_dict().items()
        if name.endswith("_proj.bias")
    }
    language.load_state_dict({**weights, **biases})
    model.tie_weights()
    processor = PaddleOCRVLProcessor(
        image_processor=image_processor(), tokenizer=tokenizer, chat_template=TEMPLATE
    )
    return model.eval(), processor


def image_processor() -> Qwen2VLImageProcessorPil:
    """Build the part of the processor that sees pictures."""
    return Qwen2VLImageProcessorPil(
        size={
            "shortest_edge": MIN_TOKENS * TOKEN_PIXELS,
            "longest_edge": MAX_TOKENS * TOKEN_PIXELS,
        },
        patch_size=PATCH_SIZE,
        merge_size=MERGE,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def vision_config(out_width: int) -> Qwen2_5_VLVisionConfig:
    """Configure a tower of the size of scenes-llava's, before a decoder of this width.

    Layers 0 and 2 look around in windows of 8 x 8 patches, the others in the whole picture.
    """
    return Qwen2_5_VLVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        depth=4,
        num_heads=3,
        patch_size=PATCH_SIZE,
        spatial_merge_size=MERGE,
        window_size=8 * PATCH_SIZE,
        fullatt_block_indexes=[1, 3],
        out_hidden_size=out_width,
    )


def _config(tokenizer: Any, decoder: dict[str, Any]) -> Qwen2_5_VLConfig:
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    shared = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range"),
        *("rms_norm_eps", "attention_dropout"),
    )
    text = Qwen2_5_VLTextConfig(
        **{name: decoder[name] for name in shared},
        **ids,
        vocab_size=len(tokenizer),
        # Shares of the head's frequencies (32 of them) for time, rows and columns.
        rope_parameters={**decoder["rope_parameters"], "mrope_section": [8, 12, 12]},
    )
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = tokenizer.convert_tokens_to_ids([*NAMED.values(), *MARKS])
    return Qwen2_5_VLConfig(
        vision_config=vision_config(decoder["hidden_size"]).to_dict(),
        text_config=text.to_dict(),
        tie_word_embeddings=True,
        **dict(zip(names, tokens, strict=True)),
        **ids,
    )
