"""Train scenes-smolvlm's vision tower: ``python -m training.smolvlm_tower --out DIR``.

It has no class token and no norm before its layers, so scenes-llava's tower does not fit as it is:
it starts from that tower's weights and learns to give, patch by patch, what that tower gives,
standardised (mean squared error, 1 = as bad as the mean). No text is involved.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from training.towers import TowerRecipe, train_tower
from vlmflow.bundled.shelf import BUNDLED
from vlmflow.bundled.smolvlm import vision_config
from vlmflow.scenes.generator import draw_scene, render
from vlmflow.scenes.tasks import scene_seed

SEED, RECIPE = 0, TowerRecipe(steps=600, batch=32, rate=1e-3)
SEED_OFFSET = 50_000_000  # its pictures are those of no other stage


@dataclass(frozen=True)
class Pictures(Dataset[Tensor]):
    """Pictures as a tower sees them: (3, height, width)."""

    image_processor: Any
    # Numbers of the first one, and of the one after the last
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Tensor:
        scene = draw_scene(scene_seed("conversation", "train", SEED_OFFSET + self.start + index))
        pixels: Tensor = self.image_processor(render(scene), return_tensors="pt")["pixel_values"][0]
        return pixels


def start_from_clip(clip: Any) -> SmolVLMVisionTransformer:
    """Give a tower the weights of a CLIP tower that it has a place for."""
    tower = SmolVLMVisionTransformer(vision_config())
    weights = {
        name.replace("layrnorm", "layernorm"): value for name, value in clip.state_dict().items()
    }
    # The first position is the class token's.
    positions = weights.pop("embeddings.position_embedding.weight")[1:]
    weights["embeddings.position_embedding.weight"] = positions
    own = tower.state_dict()
    own.update({name: value for name, value in weights.items() if name in own})
    tower.load_state_dict(own)
    return tower


def train(out: Path, recipe: TowerRecipe = RECIPE) -> float:
    """Train the tower and write its weights in bfloat16; returns the last error."""
    torch.manual_seed(SEED)
    donor: Any = AutoModelForImageTextToText.from_pretrained(
        BUNDLED / "scenes-llava", dtype=torch.float32
    )
    clip = donor.model.vision_tower.requires_grad_(False).eval()
    tower = start_from_clip(clip)
    image_processor = AutoProcessor.from_pretrained(BUNDLED / "scenes-llava").image_processor

    def batches(start: int) -> DataLoader[Tensor]:
        pictures = Pictures(image_processor, start * recipe.batch, recipe.steps * recipe.batch)
        return DataLoader(pictures, recipe.batch, num_workers=1)

    def wanted(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            states: Tensor = clip(pixels).last_hidden_state
        return states[:, 1:]

    first = wanted(next(iter(batches(0)))).flatten(0, 1)
    centre, spread = first.mean(0), first.std(0)

    def error_of(pixels: Tensor) -> tuple[Tensor, str]:
        target = (wanted(pixels) - centre) / spread
        return functional.mse_loss(tower(pixels).last_hidden_state, target), ""

    return train_tower(nn.ModuleDict({"tower": tower}), batches, error_of, recipe, out)


def main() -> None:
    """Command line of ``python -m training.smolvlm_tower``."""
    parser = argparse.ArgumentParser(prog="python -m training.smolvlm_tower")
    parser.add_argument("--out", type=Path, required=True, help="directory for tower.safetensors")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
