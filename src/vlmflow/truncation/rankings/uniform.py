"""Evenly over the picture: the control that uses only the places of the tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.ranking import Ranking


@dataclass(frozen=True)
class Uniform(Ranking):
    """Farthest-point sampling over the grid of patches, starting in the middle.

    Works for every grid and count. Where rows and columns are unknown, tokens are taken at even
    steps of the sequence.
    """

    name = "uniform"
    summary = "evenly over the picture: the other control"
    reads = "places"

    def select(self, seen: Candidates, keep: int) -> Tensor:
        """Choose by place; see :meth:`Ranking.select`."""
        tokens, places = len(seen.image), seen.places_if_known
        if places is None:
            steps = torch.arange(keep, device=seen.image.device)
            return (2 * steps + 1) * tokens // (2 * keep)
        chosen = _farthest(tuple(map(tuple, places.tolist())), keep)
        return torch.tensor(chosen, device=seen.image.device)


@functools.lru_cache(maxsize=64)
def _farthest(places: tuple[tuple[float, ...], ...], keep: int) -> tuple[int, ...]:
    points = np.array(places)
    points[:, 0] *= 1e6  # tokens of two pictures are never neighbours
    first = points[points[:, 0] == points[0, 0]]
    middle = (first.min(0) + first.max(0)) / 2
    chosen = [int(((points - middle) ** 2).sum(1).argmin())]
    nearest = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < keep:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
        nearest[chosen[-1]] = -1.0
    return tuple(sorted(chosen))
