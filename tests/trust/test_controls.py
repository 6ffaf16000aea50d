"""Controls know nothing of a model: random values, the centre, nothing at all, and edges."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.trust.controls import CONTROLS, control_map


def test_controls():
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste((0, 0, 0), (10, 5, 30, 15))
    maps = {name: control_map(name, picture) for name in CONTROLS}
    assert {control.shape for control in maps.values()} == {(20, 40)}
    assert maps["centre"][10, 20] == maps["centre"].max() > 5 * maps["centre"][0, 0]
    assert np.ptp(maps["uniform"]) == 0
    assert maps["edges"][10, 20] == maps["edges"][1, 1] == 0
    # A step of 255 across an upright edge: Sobel's weights add up to 4.
    assert maps["edges"][10, 9] == maps["edges"][10, 10] == pytest.approx(4 * 255)
    assert (maps["random"] != control_map("random", picture, 1)).any()
    with pytest.raises(InputError, match="'corner' is none of random, centre, uniform, edges"):
        control_map("corner", picture)
