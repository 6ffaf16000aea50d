"""Low-rank adapters on the matrices of a frozen decoder (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

MATRICES = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


class Adapted(nn.Module):
    """A frozen linear layer plus ``x A^T B^T``; B starts at 0, so nothing changes at first."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        scale = 1 / math.sqrt(frozen.in_features)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) * scale)  # A
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))  # B

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        low = states @ self.down.to(states.dtype).T
        output: Tensor = self.frozen(states) + low @ self.up.to(states.dtype).T
        return output


def adapt(layers: nn.ModuleList, rank: int) -> None:
    """Freeze the layers and put an adapter on each of their matrices."""
    for layer in layers:
        layer.requires_grad_(False)
        for name in MATRICES:
            parent, _, child = name.rpartition(".")
            owner = layer.get_submodule(parent)
            setattr(owner, child, Adapted(getattr(owner, child), rank))


def adapter_weights(layers: nn.ModuleList) -> Iterator[tuple[str, nn.Parameter]]:
    """Name every trained matrix: ``"7.mlp.up_proj.down"``."""
    for number, layer in enumerate(layers):
        for name in MATRICES:
            adapted = layer.get_submodule(name)
            yield f"{number}.{name}.down", adapted.get_parameter("down")
            yield f"{number}.{name}.up", adapted.get_parameter("up")
