"""Bundled models on the pretrained SmolLM2 decoder, before and while they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from vlmflow.bundled.shelf import BUNDLED
from vlmflow.bundled.smollm2 import build_llava
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


def scenes_smollm2() -> Unfinished:
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
        word_size = model.model.language_model.embed_tokens.weight.pow(2).mean().sqrt()
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


def _some_features(features: Callable[[Tensor], Tensor], processor: Any) -> Tensor:
    """Features of every patch of a few pictures: (patches, width)."""
    pictures = [render(draw_scene(scene_seed("conversation", "train", i))) for i in range(64)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return features(pixels).flatten(0, 1)


BUILDERS: dict[str, Callable[[], Unfinished]] = {"scenes-smollm2": scenes_smollm2}
