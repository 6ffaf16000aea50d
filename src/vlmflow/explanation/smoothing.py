"""Maps smoothed over noisy pictures (paper eq. 4-5), batched and seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.measure import EMPTY, OK, UNDEFINED, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt

PIXELS = ("pixel_values", "pixel_values_videos")
"""Inputs that hold the pixels of pictures and videos."""

COPIES_AT_ONCE = 4
"""Noisy pictures in one batch; its activations take this many times those of a single pass."""


def smoothed_map(
    vlm: LVLM,
    prompt: Prompt,
    signal: Signal,
    options: ExplainOptions,
    *,
    on_pass: Callable[[], None] | None = None,
    at_once: int = COPIES_AT_ONCE,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Mean of a signal over noisy pictures: ``(1/N) sum_i map(x + N(0, deviation^2))``.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model, and a prompt with its answer.
    signal : Signal
        Its ``noise`` says how many pictures and how noisy. The noise depends on its seed and on
        nothing else: not on ``at_once``, not on the device.
    options : ExplainOptions
        Target and memory.
    on_pass : callable, optional
        Called after each pass.
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
    noise, inputs = signal.noise, prompt.inputs
    assert noise is not None
    name = signal.known_as()
    pixels = [key for key in PIXELS if key in inputs]
    if not pixels:
        raise InputError(f"{name} needs pixel_values to add noise to, but the inputs hold none")
    generator = torch.Generator().manual_seed(noise.seed)
    total: npt.NDArray[np.float64] | float = 0.0
    undefined: npt.NDArray[np.bool_] | bool = True
    for first in range(0, noise.copies, at_once):
        count = min(at_once, noise.copies - first)
        batch = {key: torch.cat([tensor] * count) for key, tensor in inputs.items()}
        drawn: dict[str, list[Tensor]] = {key: [] for key in pixels}
        for _ in range(count):
            for key in pixels:
                drawn[key].append(torch.randn(inputs[key].shape, generator=generator))
        for key, draws in drawn.items():
            batch[key] += noise.deviation * torch.cat(draws).to(inputs[key])
        measurements = measure(
            vlm.model,
            vlm.decoder_layers,
            batch,
            [prompt.layout] * count,
            options,
            signals={name: signal},
            segments=False,
            on_pass=on_pass,
        )
        # Added map by map, so that the chunks' sizes do not change the rounding.
        for measurement in measurements:
            total = measurement.maps[name].astype(np.float64) + total
            undefined = (measurement.flags[name] == UNDEFINED) & undefined
    maps = np.asarray(total / noise.copies, dtype=np.float32)
    flags = np.where((maps > 0).any(-1), OK, EMPTY).astype(np.int8)
    flags[undefined] = UNDEFINED
    return maps, flags
