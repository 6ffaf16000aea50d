"""Keeping some tokens of every picture, and of every group of a video's frames: no moment is lost.

The tokens that stay are shared out in proportion to those that each picture came with; the ranking
then chooses in each picture as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vlmflow.errors import InputError


def shared_out(count: int, sizes: Sequence[int]) -> list[int]:
    """Share a number of tokens out over pictures, one of each at least.

    Every further token goes to the picture that has most tokens for each that it keeps already
    (Sainte-Laguë's method), of equals to the first. With a larger number no picture gets fewer, so
    that a later stage never asks for what an earlier one has removed.

    Parameters
    ----------
    count : int
        How many stay, at most ``sum(sizes)``.
    sizes : sequence of int
        Tokens that each picture came with.

    Raises
    ------
    InputError
        If there are fewer than pictures.
    """
    if count < len(sizes):
        raise InputError(
            f"within='picture' keeps at least one token of each picture or group of frames, but "
            f"{count} are to stay of {len(sizes)}; keep at least {len(sizes)}"
        )
    picture = np.repeat(np.arange(len(sizes)), np.subtract(sizes, 1))
    kept = np.concatenate([np.arange(1, size) for size in sizes])
    # Largest quotient first; of equals the one with fewer kept, then the first picture.
    order = np.lexsort((picture, kept, -np.asarray(sizes)[picture] / (kept + 0.5)))
    further = np.bincount(picture[order[: count - len(sizes)]], minlength=len(sizes))
    return [1 + int(number) for number in further]


def select_within(
    count: int,
    left: Tensor,
    came: Tensor,
    select: Callable[[Tensor, int, int], Tensor],
) -> Tensor:
    """Choose in every picture.

    Parameters
    ----------
    count : int
        How many tokens stay in all.
    left, came : (P,), (all,) int64
        The picture of every image token that is left, and of every one that the prompt came with.
    select : callable
        Called with the indices of a picture's tokens among those left, how many of them stay, and
        the picture's number; returns indices into these indices.

    Returns
    -------
    (count,) int64
        Indices into ``left``, increasing.
    """
    pictures, sizes = torch.unique(came.cpu(), return_counts=True)
    chosen = []
    for picture, keep in zip(pictures.tolist(), shared_out(count, sizes.tolist()), strict=True):
        tokens = (left == picture).nonzero()[:, 0]
        chosen.append(tokens[select(tokens, keep, picture)])
    return torch.cat(chosen).sort().values
