"""Pictures of training examples: what goes into the tower, the text, and where image tokens stand.

``P`` is the number of positions up to the end of the picture's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmflow.bundled.smolqwen import MAX_TOKENS, MERGE, MIN_TOKENS, NAMED, TOKEN_PIXELS


class Shown(NamedTuple):
    """One picture of one example."""

    inputs: dict[str, Tensor]  # What the image processor returns; the first axis counts pictures
    text: str  # What the processor writes for it


class Pictures(Protocol):
    """How a model is shown pictures."""

    def show(self, picture: Image.Image, rng: np.random.Generator) -> Shown:
        """Process a picture."""
        ...

    def positions(self, is_image: Tensor, shown: Shown) -> Tensor:
        """Give the position ids of (P,) tokens: (P,), or (axes, P) where there are several."""
        ...


@dataclass(frozen=True)
class FixedPictures:
    """Pictures of one size, whose image tokens are counted like words."""

    image_processor: Any
    text: str  # What the processor writes for every picture

    def show(self, picture: Image.Image, rng: np.random.Generator) -> Shown:
        """Process a picture."""
        del rng
        return Shown(_processed(self.image_processor, picture), self.text)

    def positions(self, is_image: Tensor, shown: Shown) -> Tensor:
        """Count on."""
        del shown
        return torch.arange(len(is_image))


@dataclass(frozen=True)
class ShapedPictures:
    """Pictures of Qwen2.5-VL in their own shape, each at a resolution that is drawn."""

    image_processor: Any

    def show(self, picture: Image.Image, rng: np.random.Generator) -> Shown:
        """Process a picture at a random resolution."""
        inputs = _processed(self.image_processor, picture, size=random_size(rng))
        (grid,) = inputs["image_grid_thw"].tolist()
        return Shown(inputs, NAMED["image_token"] * (int(np.prod(grid)) // MERGE**2))

    def positions(self, is_image: Tensor, shown: Shown) -> Tensor:
        """Time, rows and columns of image tokens; text counts on from the largest of them."""
        (_, rows, columns) = (shown.inputs["image_grid_thw"][0] // MERGE).tolist()
        first = int(is_image.nonzero()[0])
        end = first + rows * columns
        positions = torch.arange(len(is_image)).repeat(3, 1)
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([torch.zeros_like(row), row, column]).flatten(1)
        positions[:, first:end] = first + places
        positions[:, end:] += max(rows, columns) - rows * columns
        return positions


def random_size(rng: np.random.Generator) -> dict[str, int]:
    """Draw bounds of a picture's pixels: those of 25 to 256 image tokens, and 0.85 of that.

    Each doubling of the tokens is as likely as any other. Smaller pictures are rounded up to whole
    tokens, from 0.85 times as many, so that none has more than 256.
    """
    tokens = MIN_TOKENS * (MAX_TOKENS / MIN_TOKENS) ** rng.random()
    pixels = tokens * TOKEN_PIXELS
    return {"shortest_edge": round(0.85 * pixels), "longest_edge": round(pixels)}


def _processed(processor: Any, picture: Image.Image, **options: Any) -> dict[str, Tensor]:
    return dict(processor(picture, return_tensors="pt", **options))
