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
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from vlmflow.bundled.shelf import BUNDLED
from vlmflow.bundled.smolvlm import vision_config
from vlmflow.scenes.generator import draw_scene, render
from vlmflow.scenes.tasks import scene_seed

SEED, STEPS, BATCH, RATE, WARM_UP = 0, 600, 32, 1e-3, 30
SEED_OFFSET = 50_000_000  # its pictures are those of no other stage


@dataclass(frozen=True)
class Pictures(Dataset[Tensor]):
    """Pictures as a tower sees them: (3, height, width)."""

    image_processor: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        scene = draw_scene(scene_seed("conversation", "train", SEED_OFFSET + index))
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


def train(out: Path) -> float:
    """Train the tower and write its weights in bfloat16; returns the last error."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    donor: Any = AutoModelForImageTextToText.from_pretrained(
        BUNDLED / "scenes-llava", dtype=torch.float32
    )
    clip = donor.model.vision_tower.requires_grad_(False).eval()
    tower = start_from_clip(clip).train()
    processor = AutoProcessor.from_pretrained(BUNDLED / "scenes-llava")
    loader = DataLoader(Pictures(processor.image_processor, STEPS * BATCH), BATCH, num_workers=1)
    optimizer = torch.optim.AdamW(tower.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.0)
    centre = spread = torch.zeros(())
    errors: list[float] = []
    for step, pixels in enumerate(loader, start=1):
        with torch.no_grad():
            target = clip(pixels).last_hidden_state[:, 1:]
            if step == 1:
                flat = target.flatten(0, 1)
                centre, spread = flat.mean(0), flat.std(0)
            target = (target - centre) / spread
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(step / WARM_UP, (STEPS - step) / (STEPS - WARM_UP) + 1e-3)
        error = functional.mse_loss(tower(pixels).last_hidden_state, target)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        errors.append(error.item())
        if step % 25 == 0 or step <= 3:
            print(f"step {step}  error {sum(errors[-25:]) / len(errors[-25:]):.4f}", flush=True)
    save_file(
        {name: value.to(torch.bfloat16) for name, value in tower.state_dict().items()},
        out / "tower.safetensors",
    )
    return sum(errors[-25:]) / len(errors[-25:])


def main() -> None:
    """Command line of ``python -m training.smolvlm_tower``."""
    parser = argparse.ArgumentParser(prog="python -m training.smolvlm_tower")
    parser.add_argument("--out", type=Path, required=True, help="directory for tower.safetensors")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
