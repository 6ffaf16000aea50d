"""The maps of one sample: those of signals, and those of controls, over tokens and over pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.explanation.explain import explain
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.geometry import paint, read_off
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.result.information_flow import InformationFlow
from vlmflow.trust.controls import CONTROLS, control_map

FloatArray = npt.NDArray[np.float64]

RANDOM = "random"
"""The control that every map is compared with: drawn anew for every sample, over its tokens."""


@dataclass(frozen=True, eq=False)
class TokenMap:
    """One map of one sample."""

    values: FloatArray  # (P,); 0 everywhere where the map is not defined
    painted: tuple[FloatArray, ...]  # Over the pixels of every picture; NaN where no token looks
    flag: str = "ok"  # Of :data:`~vlmflow.flow.axes.FLAGS`


def searched_by_removal(signal: Signal) -> bool:
    """Say whether a signal's map was searched for by removing image tokens.

    Judged by the same removal, it is judged in-sample.
    """
    return bool(signal.searched_with)


def check_names(signals: Mapping[str, Signal]) -> None:
    """Refuse a signal that is called like a control."""
    for name in signals:
        if name in CONTROLS:
            raise InputError(
                f"signal {name!r} is called like a control of the table; give it another name in "
                "its class (name = '...')"
            )


def explained(
    vlm: LVLM,
    prompt: Prompt,
    question: str,
    signals: Mapping[str, Signal],
    *,
    per_token: bool,
    low_memory: bool,
) -> InformationFlow:
    """Measure the signals of an answered prompt.

    Raises
    ------
    InputError
        For a family whose tokens have no place in the picture.
    """
    wants = any(signal.needs_gradients for signal in signals.values())
    options = ExplainOptions(
        signals=list(signals.values()),
        per_token=per_token and wants,
        low_memory=low_memory,
        gradients=wants,
    )
    flow = explain(vlm, prompt.visuals, question, prompt.answer_ids, options)
    if not flow.layout.grids:
        raise InputError(flow.layout.grids_missing or "the tokens have no place in the picture")
    return flow


def signal_map(flow: InformationFlow, signal: str, layer: int | None, target: int = 0) -> TokenMap:
    """Take a map from a result; one that is not defined ranks nothing, and is 0 everywhere."""
    values = np.nan_to_num(flow.map(signal, layer, target).astype(np.float64))
    return TokenMap(values, painted(flow.layout, values), flow.flag(signal, layer, target))


def control_maps(
    layout: TokenLayout, pictures: Sequence[Image.Image], seed: int
) -> dict[str, TokenMap]:
    """Make the controls of one sample; the random one over its tokens, drawn from the seed.

    ``pictures`` are those of the layout; a group of a video's frames has the controls of its first.
    """
    generator = np.random.default_rng(seed)
    random = generator.random(layout.image_positions.size)
    maps = {RANDOM: TokenMap(random, painted(layout, random))}
    for name in CONTROLS:
        if name != RANDOM:
            # What no token looks at is no control's either.
            shown = tuple(
                np.where(np.isnan(seen), np.nan, control_map(name, picture))
                for seen, picture in zip(maps[RANDOM].painted, pictures, strict=True)
            )
            full = [np.nan_to_num(own) for own in shown]
            values = read_off(layout.grids, full, layout)
            # Sums of equal pixels must be equal to the last digit to be a tie.
            values = np.round(values / max(np.nanmax(values), 1e-9), 9)
            # Tokens without a place (ends of rows of patches) are given those of others.
            placed = values[~np.isnan(values)]
            values[np.isnan(values)] = generator.choice(placed, np.isnan(values).sum())
            maps[name] = TokenMap(values, shown)
    return maps


def painted(layout: TokenLayout, values: FloatArray) -> tuple[FloatArray, ...]:
    """Paint values of all image tokens, (P,), over every picture: (height, width) each."""
    return tuple(
        paint(layout.grids, values, layout, image).astype(np.float64)
        for image in range(len(layout.image_sizes))
    )
