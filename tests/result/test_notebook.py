"""Results show themselves: a short text, and a fragment of HTML in which nothing runs."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.support.synthetic import HOSTILE, OBJECT, synthetic_flow
from vlmflow.result.map_colours import MAP_SCALE, map_colours

ELEMENTS = {"div", "figure", "img", "figcaption"}


class Elements(HTMLParser):
    """Names of elements, what pictures load, and the text that is read."""

    def __init__(self, html):
        super().__init__()
        self.names, self.sources, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def drawn(html):
    """The pictures in a fragment, as arrays."""
    pngs = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in pngs]


def test_a_result_names_itself_in_one_short_line():
    flow = synthetic_flow(layers=3)
    assert repr(flow) == (
        "InformationFlow(model='scenes-llava', answer='The circle is red', layers=3, "
        "image_tokens=144, signals=attention, saliency, llava_cam, flow_map)"
    )
    hostile = repr(dataclasses.replace(flow, answer="long\n\x1b[2J\u202e " * 1000))
    assert len(hostile) < 400
    assert hostile.isprintable()


def test_an_answer_shows_picture_map_and_sentence():
    flow = synthetic_flow(sizes=((320, 240),))
    elements = Elements(flow._repr_html_())
    assert elements.names == ELEMENTS
    for text in (flow.model, flow.question, flow.answer, "of its attention from the image"):
        assert text in elements.text
    assert "flow_map, summed over layers" in elements.text
    (picture,) = drawn(flow._repr_html_())
    assert picture.shape == (240, 320, 3)
    # The map is on its object: there the picture is changed most, apart from the unseen margins.
    plain = np.asarray(Image.fromarray(flow.pictures[0]).convert("RGB"), dtype=float)
    change = np.abs(picture - plain).sum(-1)[:, 40:-40]
    x, y = (OBJECT[0] + OBJECT[2]) / 2 * 320 - 40, (OBJECT[1] + OBJECT[3]) / 2 * 240
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs(row - y) < 60
    assert abs(column - x) < 60


def test_no_text_can_become_markup_and_nothing_is_loaded():
    texts = {name: f"{name} {HOSTILE}" for name in ("model", "question", "answer")}
    html = dataclasses.replace(synthetic_flow(hostile=True), **texts)._repr_html_()
    html.encode("utf-8")  # a lone surrogate would not
    elements = Elements(html)
    assert elements.names == ELEMENTS
    assert all(source.startswith("data:image/png;base64,") for source in elements.sources)
    assert "<script>alert" in elements.text
    assert "⟦U+202E⟧" in elements.text
    assert "{{7*7}}" in elements.text


def test_many_pictures_and_missing_maps_are_said():
    flow = synthetic_flow(sizes=((64, 48),) * 6)
    html = flow._repr_html_()
    assert len(drawn(html)) == 4
    assert "2 more pictures are not shown" in html
    layout = dataclasses.replace(synthetic_flow().layout, grids=(), grids_missing="no <grid>")
    without = dataclasses.replace(synthetic_flow(), layout=layout)
    (picture,) = drawn(without._repr_html_())
    assert (picture == without.pictures[0]).all()
    assert "no &lt;grid&gt;" in without._repr_html_()
    no_maps = dataclasses.replace(synthetic_flow(), maps={}, flags={})
    assert "no map to show" in no_maps._repr_html_()


def test_colours_of_maps_are_those_of_the_scale():
    shares = np.linspace(0, 1, 256, dtype=np.float32)
    exact = 255 * matplotlib.colormaps[MAP_SCALE](shares)[:, :3]
    assert np.abs(map_colours(shares) - exact).max() <= 6


@pytest.mark.parametrize("layers", [1, 2])
def test_small_results_show_themselves(layers):
    flow = synthetic_flow(layers=layers, answer_tokens=("Yes",), per_token=False)
    assert len(drawn(flow._repr_html_())) == 1
