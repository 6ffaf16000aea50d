"""LLaVA-CAM smoothed over noisy pictures (paper eq. 4-5), batched and seeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.measure import EMPTY, OK, UNDEFINED, count_passes, measure
from vlmflow.lvlm.layout import TokenLayout

PIXELS = ("pixel_values", "pixel_values_videos")
"""Inputs that hold what pictures and videos look like."""

COPIES_AT_ONCE = 4
"""Noisy pictures in one batch; its activations take this many times those of a single pass."""


def check_noise(copies: int, noise: float) -> None:
    """Raise InputError for a negative number of copies or a strength that is none."""
    if copies < 0:
        raise InputError(f"smooth={copies}, but the number of noisy pictures cannot be negative")
    if not (np.isfinite(noise) and noise >= 0):
        raise InputError(f"noise={noise}, but a standard deviation is a number from 0 on")


def count_smooth_passes(
    layout: TokenLayout, copies: int, per_token: bool, at_once: int = COPIES_AT_ONCE
) -> int:
    """Count the passes of :func:`smoothed_cam`."""
    return -(-copies // at_once) * count_passes([layout], per_token)


def smoothed_cam(
    model: nn.Module,
    layers: nn.ModuleList,
    inputs: Mapping[str, Tensor],
    layout: TokenLayout,
    *,
    copies: int,
    noise: float,
    seed: int,
    target: str,
    per_token: bool,
    cam_hook: str,
    low_memory: bool,
    on_pass: Callable[[], None] | None = None,
    at_once: int = COPIES_AT_ONCE,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Mean of LLaVA-CAM over noisy pictures: ``(1/N) sum_i Heat(x + N(0, noise^2))``.

    Parameters
    ----------
    model, layers : nn.Module, nn.ModuleList
        A transformers model and its decoder layers.
    inputs : mapping of tensors
        A batch of one.
    layout : TokenLayout
        Its layout.
    copies : int
        ``N``, how many noisy pictures.
    noise : float
        Standard deviation, in the units of the processor's output (normalised pixel values).
    seed : int
        The noise depends on it and on nothing else: not on ``at_once``, not on the device.
    target, per_token, cam_hook, low_memory, on_pass
        As for :func:`vlmflow.flow.measure.measure`.
    at_once : int
        Copies in one batch.

    Returns
    -------
    maps : (L, G, P) float32
    flags : (L, G) int8
        Undefined where every copy is, empty where the mean has no positive value.

    Raises
    ------
    InputError
        If the inputs hold no pixel values to add noise to.
    """
    shown = [name for name in PIXELS if name in inputs]
    if not shown:
        raise InputError("smooth needs pixel_values to add noise to, but the inputs hold none")
    generator = torch.Generator().manual_seed(seed)
    total, undefined = np.zeros(0), np.ones(0, dtype=bool)
    for first in range(0, copies, at_once):
        count = min(at_once, copies - first)
        batch = {name: torch.cat([tensor] * count) for name, tensor in inputs.items()}
        drawn: dict[str, list[Tensor]] = {name: [] for name in shown}
        for _ in range(count):
            for name in shown:
                drawn[name].append(torch.randn(inputs[name].shape, generator=generator))
        for name, draws in drawn.items():
            batch[name] += noise * torch.cat(draws).to(inputs[name])
        measured = measure(
            model,
            layers,
            batch,
            [layout] * count,
            signals=("llava_cam",),
            target=target,
            per_token=per_token,
            cam_hook=cam_hook,
            attention=False,
            low_memory=low_memory,
            on_pass=on_pass,
        )
        # Summed one by one, so that the chunks' sizes do not change the rounding.
        for one in measured:
            here = one.flags["llava_cam"] == UNDEFINED
            total = one.maps["llava_cam"].astype(np.float64) + (total if total.size else 0)
            undefined = here & undefined if undefined.size else here
    maps = (total / copies).astype(np.float32)
    flags = np.where((maps > 0).any(-1), OK, EMPTY).astype(np.int8)
    flags[undefined] = UNDEFINED
    return maps, flags
