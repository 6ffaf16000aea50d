"""Bundled models on the pretrained SmolLM2 decoder, before and while they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from training.pictures import FixedPictures, Pictures, ShapedPictures
from training.qwen_tower import bare
from training.towers import TOWER
from vlmflow.bundled.shelf import BUNDLED, TUNED
from vlmflow.bundled.smollm2 import build_llava
from vlmflow.bundled.smolqwen import build_qwen
from vlmflow.bundled.smolvlm import IMAGE_TOKENS, build_smolvlm
from vlmflow.scenes.generator import draw_scene, render
from vlmflow.scenes.tasks import scene_seed

SAMPLED = 64  # Pictures by which projectors are scaled

Features = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass
class Unfinished:
    """A model in training, as its parts."""

    processor: Any  # Its processor
    pictures: Pictures  # How it is shown pictures
    image_token_id: int  # Id of the tokens that carry image features
    # Frozen vision tower: what the image processor returns to features, (image tokens, ...)
    features: Features
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

    def features(picture: Mapping[str, Tensor]) -> Tensor:
        states: Tensor = tower(picture["pixel_values"]).last_hidden_state
        return states[:, 1:].flatten(0, 1)

    projector = model.model.multi_modal_projector
    pictures = FixedPictures(
        processor.image_processor, processor.image_token * model.config.image_seq_length
    )
    samples = _some_features(features, pictures)
    _start(projector.linear_1, projector.linear_2, samples)
    _as_long_as_words(projector, projector.linear_2, samples, model.model.language_model)
    return Unfinished(
        processor=processor,
        pictures=pictures,
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

    def features(picture: Mapping[str, Tensor]) -> Tensor:
        # A picture is a list of tiles, here of one.
        states = tower(picture["pixel_values"].flatten(0, 1)).last_hidden_state
        output: Tensor = connector.pixel_shuffle(states, connector.scale_factor)
        return output.flatten(0, 1)

    projector = connector.modality_projection
    mark, whole = processor.fake_image_token, processor.global_image_tag
    text = f"{mark}{whole}{processor.image_token * IMAGE_TOKENS}{mark}"
    pictures = FixedPictures(processor.image_processor, text)
    nn.init.normal_(projector.proj.weight, std=0.02)
    samples = _some_features(features, pictures)
    _as_long_as_words(projector, projector.proj, samples, model.model.text_model)
    return Unfinished(
        processor=processor,
        pictures=pictures,
        image_token_id=model.config.image_token_id,
        features=features,
        projector=projector,
        language_model=model.model.text_model,
        fixed={f"tower.{key}": value for key, value in weights.items()},
    )


def scenes_qwen(out: Path) -> Unfinished:
    """Qwen2.5-VL: the tower in ``out`` (``training.qwen_tower``), its merger of two layers."""
    model, processor = build_qwen()
    tower = model.model.visual
    projector = bare(tower)
    weights = {key: value.float() for key, value in _tower_weights(out).items()}
    tower.load_state_dict(weights)
    tower.requires_grad_(False).eval()

    def features(picture: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = tower(picture["pixel_values"], picture["image_grid_thw"]).pooler_output
        return output

    pictures = ShapedPictures(processor.image_processor)
    samples = _some_features(features, pictures)
    first, second = projector.mlp[0], projector.mlp[2]
    with torch.no_grad():
        _start(first, second, projector.ln_q(samples).flatten(1))
    _as_long_as_words(projector, second, samples, model.model.language_model)
    return Unfinished(
        processor=processor,
        pictures=pictures,
        image_token_id=model.config.image_token_id,
        features=features,
        projector=projector,
        language_model=model.model.language_model,
        fixed={f"tower.{key}": value for key, value in weights.items()},
    )


def _tower_weights(out: Path) -> dict[str, Tensor]:
    """Read the tower's file, or the tower that a run to be continued was made with."""
    alone = out / TOWER
    if alone.is_file():
        return load_file(alone)
    prefix = "tower."
    return {
        key.removeprefix(prefix): value
        for key, value in load_file(out / TUNED).items()
        if key.startswith(prefix)
    }


@torch.no_grad()
def _start(first: nn.Linear, second: nn.Linear, samples: Tensor) -> None:
    """Draw a projector's two layers; the first standardises its input, channel by channel."""
    centre, spread = samples.mean(0), samples.std(0)
    first.weight.normal_(std=samples.shape[1] ** -0.5)
    first.weight /= spread
    first.bias.copy_(-first.weight @ centre)
    second.weight.normal_(std=0.02)
    second.bias.zero_()


@torch.no_grad()
def _as_long_as_words(
    projector: nn.Module, last: nn.Linear, samples: Tensor, language_model: Any
) -> None:
    """Scale a projector's last layer so that image tokens start out as long as words."""
    words = language_model.embed_tokens.weight.pow(2).mean().sqrt()
    last.weight *= words / projector(samples).pow(2).mean().sqrt()


@torch.no_grad()
def _some_features(features: Features, pictures: Pictures) -> Tensor:
    """Features of a few pictures: (image tokens, ...)."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(scene_seed("conversation", "train", i)) for i in range(SAMPLED)]
    shown = [pictures.show(render(scene), rng).inputs for scene in scenes]
    return torch.cat([features(inputs) for inputs in shown])


BUILDERS: dict[str, Callable[[Path], Unfinished]] = {
    "scenes-smollm2": scenes_smollm2,
    "scenes-smolvlm": scenes_smolvlm,
    "scenes-qwen": scenes_qwen,
}
"""By name; each takes the directory that is trained in."""
