"""Which map of a result is shown, spoken of, and tested, where only one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from vlmflow.flow.axes import FLAGS
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.result.map_info import MapInfo


def shown_map(
    about: Mapping[str, MapInfo],
    flags: Mapping[str, npt.NDArray[Any]],
    share: npt.NDArray[Any],
    target: int = 0,
) -> tuple[str, int | None] | None:
    """Choose a signal and its layer.

    The first signal with one map over all layers, which has no layer, or else one of the layer that
    attends most to the image; None where none of these is defined. Which comes first is up to who
    measured: by default it is :data:`~vlmflow.flow.signals.registry.DEFAULT_SIGNAL`, and a saved
    result keeps its order. Parameters are ``about``, ``flags`` and ``attention_share`` of a result,
    and the target: 0 for the whole answer, t for its t-th token.
    """
    most = int(share[:, target, SEGMENTS.index("image")].argmax())
    for signal in sorted(about, key=lambda name: about[name].summed is None):
        layer = most if about[signal].summed is None else None
        if FLAGS[int(flags[signal][layer or 0, target])] == "ok":
            return signal, layer
    return None
