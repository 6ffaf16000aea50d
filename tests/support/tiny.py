"""Tiny LLaVA models with random weights and real processors, built in code: no file, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

CORPUS = (
    "USER: What colour is the circle? ASSISTANT: red",
    "SYSTEM: You look at pictures and answer in a few words.",
    "Is there a blue square in the picture? yes no",
    "Which number is printed on the green triangle? 1 2 3 4 5 6 7 8 9 0",
    "The picture shows a small red circle above a large yellow star.",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's own template in short: pictures first, a space before the answer."""


def tiny_tokenizer(
    kind: str = "byte", *, extra: Sequence[str] = (), **named: str
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a few sentences.

    ``kind`` is ``"byte"`` (byte-level BPE: any text survives), ``"metaspace"`` (as Llama's: a space
    is put before every text) or ``"word"`` (whole words; others are unknown). ``extra`` are more
    special tokens, ``named`` such as the tokenizer is to know by a name (``image_token="<img>"``).
    """
    added = list(dict.fromkeys(["<image>", *extra, *named.values()]))
    special = ["<pad>", "<s>", "</s>", "<unk>", *added]
    trainer: Any
    if kind == "byte":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "metaspace":
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    elif kind == "word":
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    else:
        raise ValueError(f"no tiny tokenizer of kind {kind!r}")
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[
            AddedToken(token, normalized=False, special=True) for token in added
        ],
        model_specific_special_tokens=dict(named),
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_processor(
    *,
    image_size: int | tuple[int, int] = 56,
    patch_size: int = 14,
    tower: str = "clip",
    select_strategy: str | None = None,
    tokenizer: str = "byte",
    chat_template: bool = True,
    image_processor: Any = None,
) -> LlavaProcessor:
    """A real ``LlavaProcessor``.

    ``image_size`` is the side, or ``(height, width)``, of what the vision tower is given; ``tower``
    is ``"clip"`` (resize the short side, centre crop, a class token) or ``"siglip"`` (resize to
    size, no class token).
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if image_processor is None and tower == "clip":
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": min(height, width)},
            crop_size={"height": height, "width": width},
        )
    elif image_processor is None:
        image_processor = SiglipImageProcessorPil(size={"height": height, "width": width})
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(tokenizer),
        patch_size=patch_size,
        vision_feature_select_strategy=_strategy(tower, select_strategy),
        num_additional_image_tokens=1 if tower == "clip" else 0,
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )


def tiny_llava(
    seed: int = 0,
    *,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    hidden: int = 32,
    image_size: int = 56,
    patch_size: int = 14,
    tower: str = "clip",
    select_strategy: str | None = None,
    dtype: torch.dtype = torch.float32,
    text_model: str = "llama",
    text_config: dict[str, Any] | None = None,
    tokenizer: str = "byte",
    chat_template: bool = True,
    image_processor: Any = None,
    attn_implementation: str = "sdpa",
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with random weights in eval mode, and its processor.

    Weights are drawn wide (0.1) so that attention is far from uniform. ``text_model`` is any causal
    model type of transformers (``"mistral"`` with ``text_config={"sliding_window": 8}``, ...);
    ``kv_heads`` fewer than ``heads`` gives grouped heads.
    """
    processor = tiny_processor(
        image_size=image_size,
        patch_size=patch_size,
        tower=tower,
        select_strategy=select_strategy,
        tokenizer=tokenizer,
        chat_template=chat_template,
        image_processor=image_processor,
    )
    vision_class = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    text = processor.tokenizer
    config = LlavaConfig(
        vision_config=vision_class(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch_size,
        ),
        text_config=AutoConfig.for_model(
            text_model,
            **{
                "vocab_size": len(text),
                "hidden_size": hidden,
                "intermediate_size": 2 * hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": heads if kv_heads is None else kv_heads,
                "head_dim": hidden // heads,
                "max_position_embeddings": 2048,
                "initializer_range": 0.1,
                "bos_token_id": text.bos_token_id,
                "eos_token_id": text.eos_token_id,
                "pad_token_id": text.pad_token_id,
                **(text_config or {}),
            },
        ),
        image_token_index=processor.image_token_id,
        vision_feature_select_strategy=_strategy(tower, select_strategy),
        image_seq_length=(image_size // patch_size) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration._from_config(
            config, attn_implementation=attn_implementation, dtype=dtype
        )
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.generation_config.bos_token_id = text.bos_token_id
    return model.eval(), processor


def _strategy(tower: str, chosen: str | None) -> str:
    """Drop the class token where the tower has one, unless told otherwise."""
    return chosen or ("default" if tower == "clip" else "full")
