"""On the page, a truncated run crosses out what each of its layers no longer saw."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support.browser import OpenPage, running_browser
from tests.support.number_format import QUICKLY
from tests.support.synthetic import HOSTILE, synthetic_flow
from vlmflow import cli
from vlmflow.reports.explain.page import write_report
from vlmflow.result.truncated_answer import TruncatedAnswer

# Which tokens are darkened, a little off their middles, where the line of a cross runs.
DARK = """([selector, rows, columns]) => {
  const canvas = document.querySelector(selector);
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const dark = [];
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const x = Math.floor((column + 0.3) * canvas.width / columns);
    const y = Math.floor((row + 0.3) * canvas.height / rows);
    dark.push(data[4 * (y * canvas.width + x) + 3] > 170);
  }
  return dark;
}"""


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


def test_each_layer_crosses_out_what_it_did_not_see(browser, tmp_path):
    flow = synthetic_flow(sizes=((240, 240),), grid=(6, 6), layers=4)
    seen = np.random.default_rng(2).random((4, 36)) < [[1.1], [0.7], [0.3], [-0.1]]
    settings = {"layer": [1, 2], "keep": [0.7, 3], "rank_by": {"name": "random", "seed": 3}}
    truncated = TruncatedAnswer(settings, "blue" + HOSTILE, seen)
    flow = dataclasses.replace(flow, truncated=truncated)
    opened = OpenPage(browser, write_report(flow, tmp_path / "r.html"))
    page = opened.page
    says = page.locator("#removed-part p").first.text_content()
    assert "(layer=1:2, keep=0.7:3, rank_by=random(seed=3))" in says
    assert "another answer" in says
    page.locator("#opacity").fill("0")  # only what is crossed out is left
    page.check("input[name=signal][value=attention]")
    page.locator("#sequence").get_by_role("radio", name="word: round", exact=True).click()
    position = flow.layout.tokens.index(" round")
    for layer in range(4):
        page.locator("#word-layer").fill(str(layer))
        page.select_option("[data-name=layer0]", str(layer))
        opened.shown()
        for canvas in ("#pictures canvas", "#word-pictures canvas", "#side0 canvas"):
            dark = page.evaluate(DARK, [canvas, 6, 6])
            np.testing.assert_array_equal(dark, ~seen[layer], err_msg=f"{canvas}, layer {layer}")
        says = page.locator("#removed-says").inner_text()
        assert says.startswith(f"Layer {layer} of the truncated run sees {seen[layer].sum()} of 36")
        values = flow.text_attention.of(position)[layer, flow.layout.image_positions]
        if layer:
            share = values[~seen[layer]].sum() / values.sum()
            stated = says.split("holds ")[1].split("%")[0].replace("\u00a0", "")
            assert float(stated) == pytest.approx(100 * share, abs=0.6)
        else:
            assert "lacks" not in says
    heights = page.eval_on_selector_all("#seen-bars i", "bars => bars.map(b => b.style.height)")
    shares = [float(height.rstrip("%")) for height in heights]
    np.testing.assert_allclose(shares, 100 * seen.mean(1), atol=0.01)
    page.check("input[name=removed][value=hide]")
    opened.shown()
    assert not any(page.evaluate(DARK, ["#word-pictures canvas", 6, 6]))
    assert opened.outside_requests() == []
    assert [line for line in opened.complaints if "willReadFrequently" not in line] == []
    assert page.evaluate("window.ranPayload") == 0
    opened.close()


def test_the_command_line_answers_with_tokens_removed_as_well(tmp_path):
    picture, question = vlmflow.sample("scenes-reading", index=3)
    picture.save(tmp_path / "p.png")
    arguments = ["explain", str(tmp_path / "p.png"), question, "--whole", "--no-gradients"]
    arguments += [
        "--truncate",
        "layer=6,keep=8",
        "--out",
        str(tmp_path / "out"),
        "--json",
        *QUICKLY,
    ]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["truncated"]["image_tokens_per_layer"] == [144] * 6 + [8] * 6
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "With image tokens removed (layer=6, keep=8, rank_by=" in text
    flow = vlmflow.InformationFlow.load(tmp_path / "out")
    assert flow.truncated.answer == facts["truncated"]["answer"]
    refused = CliRunner().invoke(cli.app, ["explain", "scenes-reading", "--truncate", "layer=2"])
    assert refused.exit_code == 2
    assert "needs keep" in refused.output
