"""Checkpoints of a training run: weights and optimiser state in one safetensors file."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


def save_checkpoint(
    trained: nn.Module, optimizer: torch.optim.Optimizer, out: Path, step: int
) -> None:
    """Write a checkpoint, then remove the ones before it."""
    tensors = {f"weights.{k}": v.detach().clone() for k, v in trained.named_parameters()}
    parameters = itertools.chain(*(group["params"] for group in optimizer.param_groups))
    for number, parameter in enumerate(parameters):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{number}.{key}"] = value.clone()
    partial = out / "checkpoint.partial"
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(out / f"checkpoint-{step}.safetensors")
    for old in out.glob("checkpoint-*.safetensors"):
        if old.name != f"checkpoint-{step}.safetensors":
            old.unlink()


def latest_step(out: Path) -> int:
    """Step of the checkpoint in ``out``; 0 if there is none."""
    steps = [int(p.stem.split("-")[1]) for p in out.glob("checkpoint-*.safetensors")]
    return max(steps, default=0)


def restore_checkpoint(trained: nn.Module, optimizer: torch.optim.Optimizer, out: Path) -> None:
    """Read the latest checkpoint back into the weights and the optimiser."""
    tensors = load_file(out / f"checkpoint-{latest_step(out)}.safetensors")
    with torch.no_grad():
        for key, parameter in trained.named_parameters():
            parameter.copy_(tensors[f"weights.{key}"])
    parameters = itertools.chain(*(group["params"] for group in optimizer.param_groups))
    for number, parameter in enumerate(parameters):
        moments = {
            key: tensors[f"optimizer.{number}.{key}"]
            for key in ("exp_avg", "exp_avg_sq", "step")
            if f"optimizer.{number}.{key}" in tensors  # absent for weights nothing depends on
        }
        if moments:
            optimizer.state[parameter] = moments


def restore_weights(trained: nn.Module, file: Path) -> int:
    """Read what was trained from a finished or unfinished model's file; returns its step.

    Names there have dots where ``trained`` has slashes. The optimiser's moments are not kept in it.
    """
    with safe_open(file, "pt") as opened, torch.no_grad():
        for key, parameter in trained.named_parameters():
            parameter.copy_(opened.get_tensor(key.replace("/", ".")))
        return int(opened.metadata()["step"])
