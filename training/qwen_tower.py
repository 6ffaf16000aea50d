"""Train scenes-qwen's vision tower: ``python -m training.qwen_tower --out DIR``.

It learns to say what lies under each patch (kind, colour, size and number of the object there), as
scenes-llava's tower did, whose weights it starts from. Pictures come whole, at every resolution
that the model may be shown. Where an object stands is not asked: this tower's positions are
relative (rotary), and the decoder has the places of image tokens by itself. No text is involved.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from training.pictures import ShapedPictures
from training.scenes_llava.conversations import PATCH_LABELS, labels_under
from training.scenes_llava.losses import patch_loss
from training.towers import TowerRecipe, train_tower
from vlmflow.bundled.shelf import BUNDLED
from vlmflow.bundled.smolqwen import MERGE, image_processor, vision_config
from vlmflow.scenes.generator import Scene, draw_scene, render
from vlmflow.scenes.tasks import scene_seed

SEED, RECIPE = 0, TowerRecipe(steps=2000, batch=16, rate=1e-3, warm_up=60)
SEED_OFFSET = 60_000_000  # its pictures are those of no other stage
LABELS = {name: PATCH_LABELS[name] for name in ("kind", "colour", "size", "tens", "units")}


def bare(tower: Qwen2_5_VisionTransformerPretrainedModel) -> nn.Module:
    """Take a tower's merger off it, and return that.

    What the tower gives from then on, as ``pooler_output``, is the patches of every image token,
    token by token in the picture's order: (image tokens, patches of one, width).
    """
    merger = tower.merger
    tower.merger = nn.Unflatten(0, (-1, MERGE**2))
    return merger


def start_from_clip(clip: Any) -> Qwen2_5_VisionTransformerPretrainedModel:
    """Build a bare tower whose patches and layers compute what those of a CLIP tower do.

    Layers agree where positions and windows leave them alone. They normalise by the root of the
    mean square, CLIP's by mean and variance: the same for states whose mean is 0, which everything
    that is added to the states has here; a normalisation's bias goes into the matrix after it. A
    quick GELU of z is ``1/1.702`` times a SiLU of ``1.702 z``, whose factor is the second half of
    the gated layer.
    """
    tower = Qwen2_5_VisionTransformerPretrainedModel(vision_config(clip.config.hidden_size))
    bare(tower)
    slope = 1.702
    with torch.no_grad():
        # Two equal frames make a picture.
        patches = _centred(clip.get_submodule("embeddings").patch_embedding.weight)
        depth = tower.patch_embed.temporal_patch_size
        tower.patch_embed.proj.weight.copy_(patches[:, :, None].expand(-1, -1, depth, -1, -1))
        tower.patch_embed.proj.weight /= depth
        for block, layer in zip(tower.blocks, clip.encoder.layers, strict=True):
            block.norm1.weight.copy_(layer.layer_norm1.weight)
            block.norm2.weight.copy_(layer.layer_norm2.weight)
            own = layer.self_attn
            parts = (own.q_proj, own.k_proj, own.v_proj)
            block.attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            block.attn.qkv.bias.copy_(torch.cat([part(layer.layer_norm1.bias) for part in parts]))
            block.attn.proj.weight.copy_(_centred(own.out_proj.weight))
            block.attn.proj.bias.copy_(_centred(own.out_proj.bias))
            block.mlp.gate_proj.weight.copy_(slope * layer.mlp.fc1.weight)
            block.mlp.gate_proj.bias.copy_(slope * layer.mlp.fc1(layer.layer_norm2.bias))
            block.mlp.up_proj.weight.zero_()
            block.mlp.up_proj.bias.fill_(1 / slope)
            block.mlp.down_proj.weight.copy_(_centred(layer.mlp.fc2.weight))
            block.mlp.down_proj.bias.copy_(_centred(layer.mlp.fc2.bias))
    return tower


def _centred(weights: Tensor) -> Tensor:
    """Take the mean over output channels away."""
    return weights - weights.mean(0, keepdim=True)


def patch_labels(scene: Scene, rows: int, columns: int) -> Tensor:
    """Label what lies under the centre of each patch of a whole picture.

    int64 of shape ``(len(LABELS), rows * columns)``, in the order in which the image processor
    gives patches: those of an image token follow each other. 0 means nothing.
    """
    x = (np.arange(columns) + 0.5) / columns * scene.width
    y = (np.arange(rows) + 0.5) / rows * scene.height
    chosen = [list(PATCH_LABELS).index(name) for name in LABELS]
    labels = torch.from_numpy(labels_under(scene, x[None, :], y[:, None])[chosen])
    tokens = labels.reshape(len(LABELS), rows // MERGE, MERGE, columns // MERGE, MERGE)
    return tokens.transpose(2, 3).flatten(1)


@dataclass(frozen=True)
class Batches(Dataset[dict[str, Tensor]]):
    """The batches of steps ``start + 1`` to ``steps``; every one is always the same."""

    pictures: ShapedPictures
    recipe: TowerRecipe
    start: int

    def __len__(self) -> int:
        return self.recipe.steps - self.start

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = SEED_OFFSET + (self.start + index) * self.recipe.batch
        shown, labels = [], []
        for number in range(first, first + self.recipe.batch):
            seed = scene_seed("conversation", "train", number)
            scene, rng = draw_scene(seed), np.random.default_rng(np.random.SeedSequence((*seed, 3)))
            inputs = self.pictures.show(render(scene), rng).inputs
            shown.append(inputs)
            _, rows, columns = inputs["image_grid_thw"][0].tolist()
            labels.append(patch_labels(scene, rows, columns))
        batch = {key: torch.cat([inputs[key] for inputs in shown]) for key in shown[0]}
        return {**batch, "labels": torch.cat(labels, dim=1)}


def train(out: Path, recipe: TowerRecipe = RECIPE) -> float:
    """Train the tower and write its weights in bfloat16; returns the last loss."""
    torch.manual_seed(SEED)
    donor: Any = AutoModelForImageTextToText.from_pretrained(
        BUNDLED / "scenes-llava", dtype=torch.float32
    )
    tower = start_from_clip(donor.model.vision_tower)
    width = tower.config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in LABELS.items()})
    for head in heads.parameters():
        nn.init.zeros_(head)  # so that the first steps do not undo what the tower starts with

    def loss_of(batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        with torch.autocast("cpu", torch.bfloat16):
            patches = tower(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
            loss, right = patch_loss(heads, patches.flatten(0, 1)[None], batch["labels"][None])
        return loss, "  ".join(f"{name} {share:.2f}" for name, share in right.items())

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        data = Batches(ShapedPictures(image_processor()), recipe, start)
        yield from DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4)

    trained = nn.ModuleDict({"tower": tower, "heads": heads})
    return train_tower(trained, batches, loss_of, recipe, out)


def main() -> None:
    """Command line of ``python -m training.qwen_tower``."""
    parser = argparse.ArgumentParser(prog="python -m training.qwen_tower")
    parser.add_argument("--out", type=Path, required=True, help="directory for tower.safetensors")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
