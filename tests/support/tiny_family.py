"""A tiny model of one family: what its entry in `families.py` says, and what its builder needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.support.tiny import CHAT_TEMPLATE
from vlmflow import LVLM
from vlmflow.lvlm.model_parts import image_token_ids

PATCH = 4
TILE = 4 * PATCH
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

MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)


@dataclass(frozen=True)
class TinyFamily:
    """How to build the model of one `model_type`.

    `build` takes the attention implementation. `slack` is by how many tower pixels a change may
    wander before it reaches a token, where pictures or features are resized more than once.
    `variant` tells several models of one type apart. `single` is False where transformers itself
    fails on a picture of one token. `first_attention` is the first layer that has attention,
    `norm` the one that its MLP reads. `queries`: one picture per prompt, and no token has a place
    of its own. `one_shape`: transformers takes pictures
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


def template(placeholder: str, video: str | None = None) -> str:
    """LLaVA's chat template with another image placeholder, and one of videos."""
    if video is None:
        return CHAT_TEMPLATE.replace("<image>\n", placeholder)
    loop = CHAT_TEMPLATE[CHAT_TEMPLATE.index(_LOOP) :].partition("{% endfor %}")[0]
    both = (
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ '{placeholder}' }}}}"
        f"{{% elif part['type'] == 'video' %}}{{{{ '{video}' }}}}{{% endif %}}"
    )
    return CHAT_TEMPLATE.replace(loop, both)


_LOOP = "{% for part in message['content'] if part['type'] == 'image' %}"


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
    model.generation_config.suppress_tokens = list(image_token_ids(model))
    return model.eval()


def text_of(tokenizer: Any, **options: Any) -> dict[str, Any]:
    """The decoder's settings for a tokenizer."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    own = {name: getattr(tokenizer, name) for name in ids}
    return {**TEXT, **own, "vocab_size": len(tokenizer), **options}


def unchecked_videos(processor_class: type) -> type:
    """The processor as it is, but with any video processor, or none: transformers knows its own
    with torchvision only."""

    class UncheckedVideos(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    UncheckedVideos.__name__ = processor_class.__name__
    return UncheckedVideos
