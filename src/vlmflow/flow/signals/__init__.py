"""The signals: one documented function per definition, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.signals.llava_cam import channel_weights, heat_map, llava_cam_code


@dataclass(frozen=True)
class Signal:
    """A way to say how much each image token matters.

    Parameters
    ----------
    name : str
        As users type it.
    summary : str
        One line for lists and reports.
    reads : str
        What it is made of: ``"attention"`` rows, ``"saliency"`` rows, or ``"features"`` at the hook
        point with their gradient.
    pool : callable, optional
        For ``"features"``: gradients (P, C) to what is kept of them. It must be LINEAR: it is
        summed over the answer tokens to give that of the whole answer.
    read : callable, optional
        For ``"features"``: features (P, C) and the pooled gradients to the map (P,).
    """

    name: str
    summary: str
    reads: Literal["attention", "saliency", "features"]
    pool: Callable[[Tensor], Tensor] | None = None
    read: Callable[[Tensor, Tensor], Tensor] | None = None


def _everything(gradients: Tensor) -> Tensor:
    return gradients


_ALL = (
    Signal("attention", "attention of the predicting position, mean over heads", "attention"),
    Signal("saliency", "attention x gradient, summed over all text rows", "saliency"),
    Signal("flow", "saliency summed over the layers before the cliff", "saliency"),
    Signal("llava_cam", "LLaVA-CAM by the paper's formula", "features", channel_weights, heat_map),
    Signal(
        "llava_cam_code",
        "LLaVA-CAM as the paper's code computes it",
        "features",
        _everything,
        llava_cam_code,
    ),
    Signal(
        "llava_cam_smooth",
        "LLaVA-CAM, mean over noisy pictures",
        "features",
        channel_weights,
        heat_map,
    ),
)

SIGNALS: dict[str, Signal] = {signal.name: signal for signal in _ALL}
"""Every signal by name."""

DEFAULT_SIGNALS: tuple[str, ...] = ("attention", "saliency", "flow", "llava_cam")


def check_signals(names: Sequence[str]) -> None:
    """Raise InputError for no signal at all, or one that does not exist."""
    if isinstance(names, str):
        raise InputError(f"signals={names!r} is a text; pass a list of names: [{names!r}]")
    if not names:
        raise InputError(f"signals is empty; possible are {', '.join(map(repr, SIGNALS))}")
    for name in names:
        if name not in SIGNALS:
            raise InputError(f"signal {name!r} is none of {', '.join(map(repr, SIGNALS))}")
