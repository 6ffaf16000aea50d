"""Training of a vision tower alone: warm-up, straight decay, checkpoints, the finished weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoints import latest_step, restore_checkpoint, save_checkpoint

CHECKPOINT_EVERY, LOG_EVERY = 100, 25
TOWER = "tower.safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class TowerRecipe:
    """How long, and how fast."""

    steps: int
    batch: int  # Pictures of a step
    rate: float  # Learning rate after warm-up (AdamW)
    warm_up: int = 30

    def rate_at(self, step: int) -> float:
        """Give the learning rate of a step: up from 0, and straight down to 0."""
        end = (self.steps - step) / (self.steps - self.warm_up) + 1e-3
        return self.rate * min(step / self.warm_up, end)


def train_tower(
    trained: nn.ModuleDict,
    batches: Callable[[int], Iterable[T]],
    loss_of: Callable[[T], tuple[Tensor, str]],
    recipe: TowerRecipe,
    out: Path,
) -> float:
    """Train a tower and write its weights in bfloat16; returns the mean of the last losses.

    A killed run continues from its last checkpoint. ``trained`` holds the tower as ``"tower"``,
    and what is trained beside it; ``batches`` takes the step that they begin after; ``loss_of``
    gives a loss, and what else is to be printed.
    """
    # The directory is also that of the decoder's training, which has checkpoints of its own.
    checkpoints = out / "tower-checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        trained.parameters(), recipe.rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    start = latest_step(checkpoints)
    if start:
        restore_checkpoint(trained, optimizer, checkpoints)
    trained.train()
    losses: list[float] = []
    for step, batch in enumerate(batches(start), start=start + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss, more = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        losses = [*losses, loss.item()][-LOG_EVERY:]
        if step % LOG_EVERY == 0 or step <= 3:
            print(f"step {step}  loss {sum(losses) / len(losses):.4f}  {more}", flush=True)
        if step % CHECKPOINT_EVERY == 0:
            save_checkpoint(trained, optimizer, checkpoints, step)
    weights = trained["tower"].state_dict()
    save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, out / TOWER)
    shutil.rmtree(checkpoints)
    return sum(losses) / max(len(losses), 1)
