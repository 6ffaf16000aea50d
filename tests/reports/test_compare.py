"""Two maps side by side on one scale: layers, signals and answer tokens, of one result or two."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support.browser import OpenPage, running_browser
from tests.support.synthetic import HOSTILE, synthetic_flow
from vlmflow import cli
from vlmflow.errors import InputError
from vlmflow.escape_invisible import visible
from vlmflow.reports.explain.page import write_report

# The colour of every token of a side: opaque and linear, it says the value on the scale.
COLOURS = """([side, rows, columns]) => {
  const { mapScale } = JSON.parse(document.querySelector('#head').textContent);
  const scale = d3[`interpolate${mapScale}`];
  const canvas = document.querySelector(`#side${side} canvas`);
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colours = [];
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const x = Math.floor((column + 0.5) * canvas.width / columns);
    const y = Math.floor((row + 0.5) * canvas.height / rows);
    const at = 4 * (y * canvas.width + x);
    const shares = d3.range(0, 1.0001, 0.01);
    const far = (share) => {
      const { r, g, b } = d3.rgb(scale(share));
      return (r - data[at]) ** 2 + (g - data[at + 1]) ** 2 + (b - data[at + 2]) ** 2;
    };
    colours.push(data[at + 3] < 40 ? 0 : shares[d3.minIndex(shares, far)]);
  }
  return colours;
}"""


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


def select(opened, **choices):
    for name, value in choices.items():
        opened.page.select_option(f"[data-name={name}]", value)
    opened.page.locator("#opacity").fill("100")
    opened.shown()


def assert_drawn(opened, maps, grids):
    """Each side shows its map on the scale of the larger of the two."""
    top = max(values.max() for values in maps)
    for side, (values, grid) in enumerate(zip(maps, grids, strict=True)):
        shown = np.array(opened.page.evaluate(COLOURS, [side, *grid]))
        # A hundred steps of the scale; faint tokens mix with the canvas's transparency.
        strong = values / top > 0.1
        np.testing.assert_allclose(shown[strong], (values / top)[strong], atol=0.03)
    ticks = opened.page.locator("#compare-legend .tick text").all_text_contents()
    assert float(ticks[-1]) == pytest.approx(top, rel=1e-2)


def test_layers_signals_and_tokens_share_one_scale(browser, tmp_path):
    flow = synthetic_flow(sizes=((240, 240),), layers=6)
    opened = OpenPage(browser, write_report(flow, tmp_path / "r.html"))
    # as it opens: the layer of most attention to the image beside the last
    says = [opened.page.locator(f"#side{side} .readout").inner_text() for side in (0, 1)]
    assert "layer 0, for the whole answer" in says[0]
    assert "layer 5, for the whole answer" in says[1]
    grid = (12, 12)
    select(opened, layer0="1", layer1="4")
    values = [flow.map("attention", 1), flow.map("attention", 4)]
    assert_drawn(opened, values, [grid, grid])
    best = [set(np.argsort(-one)[:15].tolist()) for one in values]
    said = opened.page.locator("#compare-says").inner_text()
    assert (
        f"(15), {len(best[0] & best[1])} are the same in both; by chance it would be 1.56" in said
    )
    select(opened, signal1="flow_map", target1="3")
    assert "units of their own" in opened.page.locator("#compare-says").inner_text()
    opened.page.check("input[name=scale][value=shares]")
    select(opened)
    values = [flow.map("attention", 1), flow.map("flow_map", target=3)]
    assert_drawn(opened, [one / one.sum() for one in values], [grid, grid])
    assert opened.page.locator("[data-name=layer1]").is_hidden()
    select(opened, signal0="llava_cam", layer0="5")
    message = opened.page.locator("#side0 .message").inner_text()
    assert message.startswith("Undefined: at layer 5")
    assert opened.outside_requests() == []
    # the test itself reads pixels more than once, of which the browser warns
    assert [line for line in opened.complaints if "willReadFrequently" not in line] == []
    opened.close()


def test_two_results_stand_side_by_side(browser, tmp_path):
    """Of other signals, grids, pictures, layers and hostile texts."""
    flow = synthetic_flow(sizes=((240, 240),), layers=4)
    other = synthetic_flow(
        sizes=((200, 200),), layers=3, grid=(4, 5), answer_tokens=("No",), hostile=True, seed=5
    )
    other = dataclasses.replace(other, maps={"saliency": other.maps["saliency"]},
        flags={"saliency": other.flags["saliency"]}, about={})  # fmt: skip
    path = vlmflow.report([flow, other], tmp_path / "r.html")
    opened = OpenPage(browser, path)
    says = opened.page.locator("#side1 .readout").text_content()
    assert f"“{visible(other.answer)}” to “{visible(other.question)}”" in says
    opened.page.check("input[name=scale][value=values]")
    select(opened, signal0="saliency", layer0="2", layer1="1", target1="1")
    values = [flow.map("saliency", 2), other.map("saliency", 1, 1)]
    assert_drawn(opened, values, [(12, 12), (4, 5)])
    assert opened.page.locator("#compare-says").inner_text() == ""
    # the same result on both sides, after all
    select(opened, source1="0")
    select(opened, signal1="attention", layer1="3", signal0="attention")
    assert_drawn(opened, [flow.map("attention", 2), flow.map("attention", 3)], [(12, 12)] * 2)
    assert opened.outside_requests() == []
    # the test itself reads pixels more than once, of which the browser warns
    assert [line for line in opened.complaints if "willReadFrequently" not in line] == []
    assert opened.page.evaluate("window.ranPayload") == 0
    opened.close()


def test_two_large_results_stay_under_the_limit(tmp_path):
    flow = synthetic_flow(layers=32, grid=(24, 24), sizes=((1000, 800),), seed=1)
    noise = np.random.default_rng(0).integers(0, 256, (800, 1000, 3), dtype=np.uint8)
    other = dataclasses.replace(flow, pictures=(noise,))
    path = vlmflow.report((flow, other), tmp_path / "two.html")
    assert path.stat().st_size < 3_000_000
    head = json.loads(
        re.search(r'id="head">(.*?)</script>', path.read_text("utf-8"))[1].replace("\\u003c", "<")
    )
    assert len(head["maps"]) >= 3
    assert len(head["other"]["maps"]) >= 1
    same = vlmflow.report([flow, flow], tmp_path / "same.html").read_text("utf-8")
    assert same.count("data:image") == path.read_text("utf-8").count("data:image") - 1


def test_what_cannot_stand_side_by_side_is_refused(tmp_path):
    flow = synthetic_flow(layers=2, grid=(2, 2))
    for results, message in (
        ([flow, 3], "takes explained answers, not a int"),
        ([flow] * 3, "3 results were given"),
        ([], "0 results were given"),
    ):
        with pytest.raises(InputError, match=message):
            vlmflow.report(results, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_one_answer_again_or_two(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(cli.app, ["report", *map(str, arguments)])

    one, two = tmp_path / "one", tmp_path / "two"
    synthetic_flow(layers=2, grid=(2, 2)).save(one)
    synthetic_flow(layers=2, grid=(2, 2), seed=3).save(two)
    (tmp_path / "empty").mkdir()
    assert run(one).exit_code == 0
    assert '"other":null' in (one / "report.html").read_text("utf-8")
    assert run(one, two, "--out", tmp_path / "both").exit_code == 0
    assert '"other":{' in (tmp_path / "both" / "report.html").read_text("utf-8")
    for arguments, message in (
        ((one, two), "name one with --out"),
        ((one, two, one), "3 directories were given"),
        ((one, tmp_path / "empty"), "holds no explained answer"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_hostile_texts_of_the_other_result_cannot_become_markup(tmp_path):
    plain = synthetic_flow(layers=2, grid=(2, 2))
    hostile = synthetic_flow(layers=2, grid=(2, 2), hostile=True)
    text = vlmflow.report([plain, hostile], tmp_path / "r.html").read_text("utf-8")
    head = re.search(r'<script type="application/json" id="head">(.*?)</script>', text)[1]
    assert not set(head) & set("<>&")
    assert json.loads(head)["other"]["question"] == visible(
        "What colour is the round thing?" + HOSTILE
    )
