"""BLIP-2 and InstructBLIP: a few query tokens that each look at the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vlmflow.lvlm.families.base import Family, PreparedPictures
from vlmflow.lvlm.geometry import MapUnavailableError, preimage
from vlmflow.lvlm.grids import FloatArray, Grid, ImageGrid, SharedGrid

HOW = (
    "each query token's value spread over the patches as the Q-Former's cross-attention is, "
    "mean over its heads and layers"
)


class Blip2(Family):
    """No token has a place of its own: a Q-Former asks the picture by cross-attention.

    The processor puts the query tokens before the text by itself, for one picture.
    """

    model_types: ClassVar[tuple[str, ...]] = ("blip-2", "instructblip")
    pictures_in_prompt: ClassVar[bool] = False
    bare_lead: ClassVar[str] = " "
    generates_past_forward: ClassVar[bool] = True

    def grids(self, prepared: PreparedPictures) -> tuple[ImageGrid, ...]:
        """Raise: where queries look is known when they have looked."""
        raise MapUnavailableError(
            f"no map over pixels yet: the {prepared.positions.size} image tokens of "
            f"{prepared.config.model_type!r} are queries of a Q-Former, which all look at the "
            "whole picture; explain watches where"
        )

    @contextmanager
    def watching(
        self, model: Any, prepared: PreparedPictures
    ) -> Iterator[Callable[[], tuple[Grid, ...]]]:
        """Keep what cross-attention asks and is offered; see :meth:`Family.watching`."""
        asked: dict[nn.Module, Tensor] = {}
        offered: dict[nn.Module, Tensor] = {}
        modules = [
            module.crossattention.attention
            for module in model.modules()
            if getattr(module, "has_cross_attention", False)
        ]

        def keep(
            held: dict[nn.Module, Tensor],
            owner: nn.Module,
            _part: nn.Module,
            _args: Any,
            output: Tensor,
        ) -> None:
            held[owner] = output.detach()

        with ExitStack() as stack:
            for module in modules:
                for held, part in ((asked, module.query), (offered, module.key)):
                    handle = part.register_forward_hook(partial(keep, held, module))
                    stack.callback(handle.remove)

            def looked() -> tuple[Grid, ...]:
                weights = [_weights(module, asked[module], offered[module]) for module in asked]
                return (_shared(prepared, weights),) if weights else ()

            yield looked


def _weights(module: Any, asked: Tensor, offered: Tensor) -> FloatArray:
    """Cross-attention of one layer, mean over heads: (queries, keys)."""
    heads = module.num_attention_heads
    query, key = (
        states[0].float().view(len(states[0]), heads, -1).transpose(0, 1)
        for states in (asked, offered)
    )
    weights = torch.softmax(query @ key.transpose(1, 2) * module.scaling, dim=-1)
    mean: FloatArray = weights.mean(0).cpu().double().numpy()
    return mean


def _shared(prepared: PreparedPictures, weights: list[FloatArray]) -> SharedGrid:
    """Lay the mean over layers over the picture, without what goes to the class token."""
    mean = np.mean(weights, axis=0)
    pixels = prepared.inputs["pixel_values"].shape[-2:]
    patch = prepared.config.vision_config.patch_size
    rows, cols = (side // patch for side in pixels)
    if mean.shape != (prepared.positions.size, 1 + rows * cols):
        raise MapUnavailableError(
            f"no map over pixels: {prepared.positions.size} queries looked at {mean.shape[1]} "
            f"patches, where {rows} x {cols} and a class token were expected"
        )
    looks = mean[:, 1:] / mean[:, 1:].sum(axis=1, keepdims=True)
    (size,) = prepared.image_sizes
    boxes = preimage(prepared.processor.image_processor, *size).boxes(rows, cols, patch, patch)
    return SharedGrid(
        0, prepared.positions, boxes, "queries", looks=looks.reshape(-1, rows, cols), how=HOW
    )
