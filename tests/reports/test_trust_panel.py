"""The panel of a tested map: a sentence, its curves, and its difference beside random orders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.browser import OpenPage, running_browser
from tests.support.synthetic import HOSTILE, synthetic_flow
from vlmflow.escape_invisible import visible
from vlmflow.reports.explain.page import write_report
from vlmflow.result.map_trust import Curves, Trust


def of_a_map(flow, signal, layer, target, shift):
    rising = np.linspace(0, 1, 9) ** 2 * 0.9
    return Trust(
        about=flow.about[signal],
        layer=layer,
        token=flow.targets[target].strip() if target else "",
        replacement="black",
        curves=Curves(np.minimum(1, rising + shift), rising[::-1]),
        random=tuple(np.linspace(-0.1, 0.12, 8)),
        signal=signal,
        target=target,
    )


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


def test_without_a_test_the_page_says_that_there_was_none(tmp_path):
    text = write_report(synthetic_flow(), tmp_path / "r.html").read_text("utf-8")
    assert 'id="trust"' not in text
    assert "has not been tested here" in text


def test_the_panel_says_and_draws_what_was_measured(browser, tmp_path):
    flow = synthetic_flow(hostile=True, layers=3)
    first = of_a_map(flow, "flow_map", None, 0, 0.05)
    second = of_a_map(flow, "saliency", 1, 4, 0.6)
    flow = dataclasses.replace(flow, trust=[first, second])
    path = write_report(flow, tmp_path / "r.html")
    assert "has not been tested here" not in path.read_text("utf-8")
    opened = OpenPage(browser, path)
    page = opened.page
    assert str(first) in page.locator(".finding").inner_text().replace("\u00a0", " ")
    for number, trust in enumerate((first, second)):
        page.locator("#trust-choice input").nth(number).check()
        page.wait_for_selector("body:not([aria-busy=true])")
        assert page.locator("#trust-says").text_content() == visible(str(trust))
        for place, curve in enumerate((trust.curves.insertion, trust.curves.deletion)):
            steps = page.locator("#trust-chart [aria-label=line]").nth(place).locator("path")
            points = [p.split(",") for p in steps.get_attribute("d")[1:].split("L")]
            heights = np.array([float(y) for _, y in points])
            # one linear scale for both: 100 % at 44 px, 0 % at 258 px
            np.testing.assert_allclose((258 - heights) / 214, curve, atol=2e-3)
        label = page.locator("#trust-interval svg").get_attribute("aria-label")
        assert f"{abs(trust.difference):.3f}" in label
        assert f"within {trust.limit:.3f} of 0" in label
        ticks = page.locator("#trust-interval [aria-label=link] path")
        assert ticks.count() == 8
        across = [float(ticks.nth(i).get_attribute("d")[1:].split(",")[0]) for i in range(8)]
        dot = page.locator("#trust-interval [aria-label=dot] circle")
        spot = float(dot.get_attribute("cx"))
        slope, origin = np.polyfit(trust.random, across, 1)
        assert spot == pytest.approx(origin + slope * trust.difference, abs=0.1)
    assert "better than chance" in page.locator("#trust-says").text_content()
    page.click("#trust-show")
    assert opened.shown() == "saliency/1/4"
    assert HOSTILE not in page.locator("#trust-says").text_content()
    assert opened.outside_requests() == opened.complaints == []
    opened.close()
