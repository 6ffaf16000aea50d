"""BLIP-2 and InstructBLIP: a few query tokens that each look at the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vlmflow.lvlm.families.base import Family, PromptPictures
from vlmflow.lvlm.families.execution import Execution
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

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Raise: where queries look is known when they have looked."""
        raise MapUnavailableError(
            f"no map over pixels yet: the {prompt.positions.size} image tokens of "
            f"{prompt.config.model_type!r} are queries of a Q-Former, which all look at the "
            "whole picture; explain records where"
        )

    def reads_question(self, inputs: Mapping[str, Any]) -> bool:
        """InstructBLIP's queries are told the question; see :meth:`Family.reads_question`."""
        return "qformer_input_ids" in inputs

    def execution(self, config: Any) -> Execution:
        """``generate`` runs the language model alone; see :meth:`Family.execution`."""
        del config
        return Execution(generates_past_forward=True)

    @contextmanager
    def recorded_grids(
        self, model: Any, prompt: PromptPictures
    ) -> Iterator[Callable[[], tuple[Grid, ...]]]:
        """Keep the queries and keys of cross-attention; see :meth:`Family.recorded_grids`."""
        queries: dict[nn.Module, Tensor] = {}
        keys: dict[nn.Module, Tensor] = {}
        modules = [
            module.crossattention.attention
            for module in model.modules()
            if getattr(module, "has_cross_attention", False)
        ]

        def keep(
            states: dict[nn.Module, Tensor],
            owner: nn.Module,
            _part: nn.Module,
            _args: Any,
            output: Tensor,
        ) -> None:
            states[owner] = output.detach()

        with ExitStack() as stack:
            for module in modules:
                for states, part in ((queries, module.query), (keys, module.key)):
                    handle = part.register_forward_hook(partial(keep, states, module))
                    stack.callback(handle.remove)

            def grids_after_run() -> tuple[Grid, ...]:
                weights = [_weights(module, queries[module], keys[module]) for module in queries]
                return (_shared(prompt, weights),) if weights else ()

            yield grids_after_run


def _weights(module: Any, queries: Tensor, keys: Tensor) -> FloatArray:
    """Cross-attention of one layer, mean over heads: (queries, keys)."""
    heads = module.num_attention_heads
    query, key = (
        states[0].float().view(len(states[0]), heads, -1).transpose(0, 1)
        for states in (queries, keys)
    )
    weights = torch.softmax(query @ key.transpose(1, 2) * module.scaling, dim=-1)
    mean: FloatArray = weights.mean(0).cpu().double().numpy()
    return mean


def _shared(prompt: PromptPictures, weights: list[FloatArray]) -> SharedGrid:
    """Lay the mean over layers over the picture, without what goes to the class token."""
    mean = np.mean(weights, axis=0)
    pixels = prompt.inputs["pixel_values"].shape[-2:]
    patch = prompt.config.vision_config.patch_size
    rows, cols = (side // patch for side in pixels)
    if mean.shape != (prompt.positions.size, 1 + rows * cols):
        raise MapUnavailableError(
            f"no map over pixels: {prompt.positions.size} queries looked at {mean.shape[1]} "
            f"patches, where {rows} x {cols} and a class token were expected"
        )
    looks = mean[:, 1:] / mean[:, 1:].sum(axis=1, keepdims=True)
    (size,) = prompt.image_sizes
    boxes = preimage(prompt.processor.image_processor, *size).boxes(rows, cols, patch, patch)
    return SharedGrid(
        0, prompt.positions, boxes, "queries", looks=looks.reshape(-1, rows, cols), how=HOW
    )
