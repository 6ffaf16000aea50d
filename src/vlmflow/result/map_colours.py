"""The colours of maps, without a drawing library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAP_SCALE = "inferno"
"""Name of the colours in matplotlib and d3: even in lightness, so that maps read in print and
without colour vision."""

_STOPS = (
    "000004", "0a0722", "1e0c45", "380962", "510e6c", "69166e",
    "801f6c", "982766", "b0315b", "c63d4d", "d94d3d", "e9612b",
    "f47918", "fa9407", "fcb014", "f8cd37", "f2ea69", "fcffa4",
)  # fmt: skip
_RED_GREEN_BLUE = np.array([[int(stop[at : at + 2], 16) for at in (0, 2, 4)] for stop in _STOPS])


def map_colours(shares: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the colours of values from 0 to 1: (...) -> (..., 3), each 0 to 255.

    Between stops the colours are interpolated; they are within 6 of 255 of the library's.
    """
    places = np.linspace(0, 1, len(_STOPS))
    channels = [np.interp(shares, places, _RED_GREEN_BLUE[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)
