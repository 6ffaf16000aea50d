"""Which map of a result is shown, and tested, where only one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from vlmflow.flow.axes import FLAGS
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.result.map_info import MapInfo


def shown_map(
    about: Mapping[str, MapInfo], flags: Mapping[str, npt.NDArray[Any]], share: npt.NDArray[Any]
) -> tuple[str, int | None] | None:
    """Choose a signal and its layer, for the whole answer.

    A map over all layers, which has no layer, or else one of the layer that attends most to the
    image; None where none of these is defined. Parameters are ``about``, ``flags`` and
    ``attention_share`` of a result.
    """
    most = int(share[:, 0, SEGMENTS.index("image")].argmax())
    for signal in sorted(about, key=lambda name: about[name].summed is None):
        layer = most if about[signal].summed is None else None
        if FLAGS[int(flags[signal][layer or 0, 0])] == "ok":
            return signal, layer
    return None
