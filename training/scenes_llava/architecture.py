"""The bundled model before training: tokenizer, processor and a randomly initialised LLaVA.

All three are plain transformers objects; a directory saved from them opens with
``AutoModelForImageTextToText`` and ``AutoProcessor`` and nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vlmflow.bundled.llava import IMAGE_SIZE, IMAGE_TOKEN, PATCH_SIZE, llava_config, llava_processor
from vlmflow.scenes.generator import draw_scene
from vlmflow.scenes.questions import REASONING, attribute, caption, existence, reading
from vlmflow.scenes.tasks import scene_seed

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<pad>", "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} ASSISTANT:{% else %}"
    "{{ message['role'] | upper }}:{% endif %}"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %} <image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    " {{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on questions of the training split.

    Any text can be encoded (bytes are the fall-back); words of the tasks become one token each and
    every digit a token of its own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        min_frequency=4,
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    texts = []
    for index in range(1500):
        seed = scene_seed("conversation", "train", index)
        scene, rng = draw_scene(seed), np.random.default_rng(np.random.SeedSequence((*seed, 2)))
        makers = (*REASONING, existence, reading, attribute)
        for question in (*(make(scene, rng) for make in makers), caption(scene)):
            if question is not None:
                content = question.content or ""
                texts.append(f"USER: {question.text} ASSISTANT: {question.answer} {content}")
    return texts


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Build the processor of this model's chats."""
    return llava_processor(tokenizer, CHAT_TEMPLATE)


def _places(width: int) -> torch.Tensor:
    """Sines and cosines of each patch's row and column, after a row for the class token.

    transformers' own initial values are small beside a patch's pixels, and relations and order need
    to know where things are.
    """
    grid, waves = IMAGE_SIZE // PATCH_SIZE, width // 4
    angles = torch.arange(grid)[:, None] / 10_000 ** (torch.arange(waves) / waves)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    places = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return 0.5 * torch.cat([torch.zeros(1, width), places])


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """Build a CLIP tower, an MLP projector and a Llama 12-layer decoder with random weights."""
    torch.manual_seed(seed)
    width = 192
    decoder = {
        "hidden_size": width,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    model = LlavaForConditionalGeneration(llava_config(tokenizer, decoder))
    embeddings = model.model.vision_tower.get_submodule("embeddings")
    with torch.no_grad():
        embeddings.get_parameter("position_embedding.weight").copy_(_places(width))
    model.generation_config.max_new_tokens = 64
    return model
