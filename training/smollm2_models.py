"""Bundled models on the pretrained SmolLM2 decoder, before and while they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from vlmflow.bundled.shelf import BUNDLED, TUNED
from vlmflow.bundled.smollm2 import build_llava
from vlmflow.bundled.smolvlm import IMAGE_TOKENS, build_smolvlm
from vlmflow.scenes.generator import draw_scene, render
from vlmflow.scenes.tasks import scene_seed


@dataclass
class Unfinished:
    """A model in training, as its parts."""

    processor: Any  # Its processor
    image_text: str  # What the processor writes for one picture
    image_token_id: int  # Id of the tokens that carry image features
    # Frozen vision tower: pixel values to features of every image token
    features: Callable[[Tensor], Tensor]
    projector: nn.Module  # Features to the decoder's width
    language_model: Any  # The decoder without its head
    # Weights that the finished model needs beside the trained ones, by their names in its file
    fixed: dict[str, Tensor] = field(default_factory=dict)


def scenes_smollm2(_out: Path) -> Unfinished:
    """LLaVA: scenes-llava's tower, a two-layer projector, SmolLM2."""
    model, processor = build_llava()
    donor: Any = AutoModelForImageTextToText.from_pretrained(
        BUNDLED / "scenes-llava", dtype=torch.float32
    )
    tower = model.model.vision_tower
    tower.load_state_dict(donor.model.vision_tower.state_dict())
    tower.requires_grad_(False).eval()

    def features(pixels: Tensor) -> Tensor:
        output: Tensor = tower(pixels).last_hidden_state[:, 1:]
        return output

    projector = model.model.multi_modal_projector
    samples = _some_features(features, processor)
    with torch.no_grad():
        # The first layer starts by standardising what the tower gives, channel by channel.
        centre, spread = samples.mean(0), samples.std(0)
        projector.linear_1.weight.normal_(std=samples.shape[1] ** -0.5)
        projector.linear_1.weight /= spread
        projector.linear_1.bias.copy_(-projector.linear_1.weight @ centre)
        word_size = _word_size(model.model.language_model)
        projector.linear_2.weight.normal_(std=0.02)
        projector.linear_2.bias.zero_()
        # And image tokens start out as long as words.
        projector.linear_2.weight *= word_size / projector(samples).pow(2).mean().sqrt()
    return Unfinished(
        processor=processor,
        image_text=processor.image_token * model.config.image_seq_length,
        image_token_id=model.config.image_token_index,
        features=features,
        projector=projector,
        language_model=model.model.language_model,
    )


def scenes_smolvlm(out: Path) -> Unfinished:
    """SmolVLM: the tower in ``out`` (``training.smolvlm_tower``), pixel shuffle, one matrix."""
    model, processor = build_smolvlm()
    tower, connector = model.model.vision_model, model.model.connector
    weights = {key: value.float() for key, value in _tower_weights(out).items()}
    tower.load_state_dict(weights)
    tower.requires_grad_(False).eval()

    def features(pixels: Tensor) -> Tensor:
        # A picture is a list of tiles, here of one.
        states = tower(pixels.flatten(0, 1)).last_hidden_state
        output: Tensor = connector.pixel_shuffle(states, connector.scale_factor)
        return output

    projector = connector.modality_projection
    samples = _some_features(features, processor)
    with torch.no_grad():
        projector.proj.weight.normal_(std=0.02)
        # Image tokens start out as long as words.
        word_size = _word_size(model.model.text_model)
        projector.proj.weight *= word_size / projector(samples).pow(2).mean().sqrt()
    mark, whole = processor.fake_image_token, processor.global_image_tag
    return Unfinished(
        processor=processor,
        image_text=f"{mark}{whole}{processor.image_token * IMAGE_TOKENS}{mark}",
        image_token_id=model.config.image_token_id,
        features=features,
        projector=projector,
        language_model=model.model.text_model,
        fixed={f"tower.{key}": value for key, value in weights.items()},
    )


def _tower_weights(out: Path) -> dict[str, Tensor]:
    """Read the tower's file, or the tower that a run to be continued was made with."""
    alone = out / "tower.safetensors"
    if alone.is_file():
        return load_file(alone)
    prefix = "tower."
    return {
        key.removeprefix(prefix): value
        for key, value in load_file(out / TUNED).items()
        if key.startswith(prefix)
    }


def _word_size(language_model: Any) -> Tensor:
    size: Tensor = language_model.embed_tokens.weight.pow(2).mean().sqrt()
    return size


def _some_features(features: Callable[[Tensor], Tensor], processor: Any) -> Tensor:
    """Features of every patch of a few pictures: (patches, width)."""
    pictures = [render(draw_scene(scene_seed("conversation", "train", i))) for i in range(64)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return features(pixels).flatten(0, 1)


BUILDERS: dict[str, Callable[[Path], Unfinished]] = {
    "scenes-smollm2": scenes_smollm2,
    "scenes-smolvlm": scenes_smolvlm,
}
"""By name; each takes the directory that is trained in."""
