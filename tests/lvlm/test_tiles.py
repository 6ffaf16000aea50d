"""A picture that a model sees twice, in tiles and as a whole: both maps apart, and together."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.support.browser import OpenPage, running_browser
from tests.support.families import FAMILIES, picture
from vlmflow.errors import InputError
from vlmflow.reports.explain.combined_cells import combined_cells
from vlmflow.reports.explain.page import write_report
from vlmflow.reports.figures.all_figures import strip_figure
from vlmflow.result.information_flow import InformationFlow


@pytest.fixture(scope="module")
def flow() -> InformationFlow:
    """One picture of many tiles and one that a single tile is enough for."""
    return explained("internvl", (64, 32), (16, 16))


def explained(name: str, *sizes: tuple[int, int]) -> InformationFlow:
    (family,) = [family for family in FAMILIES if family.name == name]
    shown = [picture(1 + number, size) for number, size in enumerate(sizes)]
    return family.lvlm().explain(shown, "What is it?", "red", signals=("saliency", "flow_map"))


def test_the_two_maps_are_painted_apart_and_together(flow):
    tiles, small = (flow.pixel_map("flow_map", kind=kind) for kind in ("tiles", "thumbnail"))
    together = flow.pixel_map("flow_map")
    assert not np.allclose(tiles, small)
    # Pixels that lie within one token of either grid: both weigh the same there.
    np.testing.assert_allclose(together[9:15, 9:15], (tiles + small)[9:15, 9:15] / 2, rtol=1e-5)
    rows, cols = flow.grid("flow_map", kind="tiles").shape
    assert rows * cols > flow.grid("flow_map", kind="thumbnail").size


def test_what_is_not_there_is_said(flow):
    with pytest.raises(InputError, match=r"kind='crops', but image=0 has 'tiles', 'thumbnail'"):
        flow.pixel_map("flow_map", kind="crops")
    with pytest.raises(InputError, match=r"kind='tiles', but image=1 has 'full'"):
        flow.pixel_map("flow_map", image=1, kind="tiles")
    with pytest.raises(InputError, match=r"name one with kind= \('tiles', 'thumbnail'\)"):
        flow.grid("flow_map")


def test_figure_and_page_say_which(flow, tmp_path):
    texts = [text.get_text() for text in strip_figure(flow, "flow_map").findobj(match=_is_text)]
    assert "tiles and thumbnail together, mean by area" in texts
    texts = [text.get_text() for text in strip_figure(flow, "flow_map", image=1).findobj(_is_text)]
    assert not any("together" in text for text in texts)
    page = write_report(flow, tmp_path / "page.html").read_text("utf-8")
    grids = json.loads(re.search(r'"grids":(\[.*?\])', page)[1])
    assert [grid["kind"] for grid in grids] == ["tiles", "thumbnail", "full"]


def over_cells(flow, signal: str, layer: int | None = None, image: int = 0):
    """What the page's cells hold: edges, mean of the tokens over each, how many these are."""
    grids = [grid for grid in flow.layout.grids if grid.image == image]
    cells = combined_cells(grids, flow.layout.image_sizes[image])
    shape = (len(cells.y) - 1, len(cells.x) - 1)
    total, tokens = np.zeros(shape), np.zeros(shape)
    for number, grid in enumerate(grids):
        rows, columns = cells.grid_rows[number], cells.grid_columns[number]
        places = np.ix_(rows >= 0, columns >= 0)
        values = flow.grid(signal, layer, image=image, kind=grid.kind)
        total[places] += values[np.ix_(rows[rows >= 0], columns[columns >= 0])]
        tokens[places] += 1
    return cells, np.divide(total, tokens, out=np.zeros(shape), where=tokens > 0), tokens


def shared(edges: np.ndarray, pixels: int) -> np.ndarray:
    """(pixels, cells): the length that a pixel and a cell share."""
    start = np.arange(pixels)[:, None]
    return np.maximum(np.minimum(start + 1, edges[1:]) - np.maximum(start, edges[:-1]), 0)


def test_a_cell_is_the_mean_of_its_pixels(flow):
    """All edges lie between pixels here, so that a cell is a block of whole pixels."""
    _, means, tokens = over_cells(flow, "flow_map")
    assert (tokens == 2).all()
    assert means.shape == (2, 4)
    blocks = flow.pixel_map("flow_map").reshape(2, 16, 4, 16)
    np.testing.assert_allclose(means, blocks.mean(axis=(1, 3)), rtol=1e-6)  # of float32
    assert (blocks.std(axis=(1, 3)) < 1e-6 * means).all()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("internvl", (61, 37)),
        ("llava_next", (70, 45)),
        ("llava_onevision", (41, 90)),
        ("idefics3", (50, 33)),
        ("lfm2_vl", (93, 41)),
        ("perception_lm", (64, 30)),
        ("gemma3, pan and scan", (47, 20)),
    ],
)
def test_cells_give_every_pixel_its_value(name, size):
    """Where edges cross pixels: the mean of the cells under a pixel by area, once per token."""
    flow = explained(name, size)
    cells, means, tokens = over_cells(flow, "saliency", 1)
    assert len({grid.kind for grid in flow.layout.grids}) == 2
    width, height = size
    across, down = shared(cells.x, width), shared(cells.y, height)
    covered = down @ tokens @ across.T
    painted = down @ (means * tokens) @ across.T / covered
    np.testing.assert_allclose(painted, flow.pixel_map("saliency", 1), rtol=1e-5)  # of float32
    # Every edge of a cell is one of a box, or the picture's: nothing is cut finer than it must be.
    most = sum(len(grid.x_edges) for grid in flow.layout.grids) + 1
    assert len(cells.x) <= most


def test_the_page_shows_grids_apart_and_combined(flow, tmp_path):
    path = write_report(flow, tmp_path / "page.html")
    assert path.stat().st_size < 3_000_000
    # Pixel (28, 20): column 1 and row 1 of the tiles, column 0 and row 1 of the thumbnail.
    wanted = {
        kind: flow.pixel_map("saliency", 0, kind=None if kind == "combined" else kind)[20, 28]
        for kind in ("combined", "tiles", "thumbnail")
    }
    assert len({float(value) for value in wanted.values()}) == 3
    with running_browser() as browser:
        opened = OpenPage(browser, path)
        page = opened.page
        assert page.locator("input[name=view]:checked").get_attribute("value") == "combined"
        page.check("input[name=signal][value=saliency]")
        page.locator("#layer").fill("0")
        page.focus("input[name=view][value=combined]")
        for kind, says in (
            ("combined", "tiles and thumbnail combined, mean by area"),
            ("tiles", "tiles alone"),
            ("thumbnail", "thumbnail alone"),
        ):
            assert opened.shown() == "saliency/0/0"
            assert page.locator("#map-says").inner_text().endswith(says)
            assert says in page.locator("#live").inner_text()
            canvas = page.locator(".frame canvas").first
            canvas.scroll_into_view_if_needed()
            area = canvas.bounding_box()
            x, y = area["width"] * 28.5 / 64, area["height"] * 20.5 / 32
            canvas.hover(position={"x": x, "y": y})
            text = page.locator("#readout").inner_text()
            assert text.startswith("Mean of image tokens") == (kind == "combined")
            value = float(text.split(": ")[1].split()[0])
            assert value == pytest.approx(wanted[kind], rel=6e-3)  # three digits are written
            box = "x 0–32, y 16–32 px" if kind == "thumbnail" else "x 16–32, y 16–32 px"
            assert box in text
            assert page.locator("#strip canvas").count() == 4
            page.mouse.move(0, 0)
            page.keyboard.press("ArrowRight")  # to the next of the radio buttons
        # The cursor walks over cells, too.
        page.check("input[name=view][value=combined]")
        opened.shown()
        page.locator(".frame canvas").first.focus()
        page.keyboard.press("ArrowDown")
        assert "Mean of image tokens" in page.locator("#live").inner_text()
        assert opened.complaints == []
        opened.close()


def test_one_grid_offers_no_choice(tmp_path):
    path = write_report(explained("internvl", (16, 16)), tmp_path / "page.html")
    with running_browser() as browser:
        opened = OpenPage(browser, path)
        assert opened.page.locator("#views-part").is_hidden()
        assert opened.page.locator("#map-says").inner_text() == "flow map, for the whole answer"
        opened.close()


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")
