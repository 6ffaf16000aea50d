"""A picture that a model sees twice, in tiles and as a whole: both maps apart, and together."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from vlmflow.errors import InputError
from vlmflow.flow.result import InformationFlow
from vlmflow.report.explain_page import write_report
from vlmflow.report.figures import strip_figure

from .families import FAMILIES, picture


@pytest.fixture(scope="module")
def flow() -> InformationFlow:
    """One picture of many tiles and one that a single tile is enough for."""
    (family,) = [family for family in FAMILIES if family.name == "internvl"]
    shown = [picture(1, (64, 32)), picture(2, (16, 16))]
    return family.lvlm().explain(shown, "What is it?", "red", signals=("saliency", "flow"))


def test_the_two_maps_are_painted_apart_and_together(flow):
    tiles, small = (flow.pixel_map("flow", kind=kind) for kind in ("tiles", "thumbnail"))
    together = flow.pixel_map("flow")
    assert not np.allclose(tiles, small)
    # Pixels that lie within one token of either grid: both weigh the same there.
    np.testing.assert_allclose(together[9:15, 9:15], (tiles + small)[9:15, 9:15] / 2, rtol=1e-5)
    rows, cols = flow.grid("flow", kind="tiles").shape
    assert rows * cols > flow.grid("flow", kind="thumbnail").size


def test_what_is_not_there_is_said(flow):
    with pytest.raises(InputError, match=r"kind='crops', but image=0 has 'tiles', 'thumbnail'"):
        flow.pixel_map("flow", kind="crops")
    with pytest.raises(InputError, match=r"kind='tiles', but image=1 has 'full'"):
        flow.pixel_map("flow", image=1, kind="tiles")
    with pytest.raises(InputError, match=r"name one with kind= \('tiles', 'thumbnail'\)"):
        flow.grid("flow")


def test_figure_and_page_say_which(flow, tmp_path):
    words = [text.get_text() for text in strip_figure(flow, "flow").findobj(match=_is_text)]
    assert "tiles and thumbnail together, mean by area" in words
    words = [text.get_text() for text in strip_figure(flow, "flow", image=1).findobj(_is_text)]
    assert not any("together" in word for word in words)
    page = write_report(flow, tmp_path / "page.html").read_text("utf-8")
    grids = json.loads(re.search(r'"grids":(\[.*?\])', page)[1])
    assert [grid["kind"] for grid in grids] == ["tiles", "thumbnail", "full"]


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")
