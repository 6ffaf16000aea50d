"""Words and picture on the page: what a word reads, who reads a region, the run through layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.browser import OpenPage, running_browser
from tests.support.synthetic import synthetic_flow
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.reports.explain.page import write_report

# Words' shares are coded in 16 bits and shown in two digits.
TWO_DIGITS = 0.06


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


@pytest.fixture
def reader(browser, tmp_path):
    """Opens a result's page; afterwards nothing may have been fetched, run or complained of."""
    opened = []

    def read(flow, **context):
        path = write_report(flow, tmp_path / f"report-{len(opened)}.html")
        opened.append(OpenPage(browser, path, **context))
        return opened[-1]

    yield read
    for page in opened:
        assert page.outside_requests() == []
        assert page.complaints == []
        page.close()


def number(text):
    """The share that a page's text states, or the bound that it is below."""
    return float(text.replace("<", "").split("%")[0].replace("\u00a0", "").split()[-1]) / 100


def choose(opened, word, layer):
    """Choose a word by what it reads as, and a layer; returns its item's number."""
    opened.page.locator("#word-layer").fill(str(layer))
    opened.page.locator("#sequence").get_by_role("radio", name=word, exact=True).click()
    opened.shown()
    return int(opened.page.evaluate("document.body.dataset.word").split("/")[0])


def items_of(flow):
    """Positions of every item on the page of `synthetic_flow`, in order: loops, no code of ours."""
    segments = flow.layout.segments.tolist()
    items, pictures = [], {}
    image_of = {}
    for grid in flow.layout.grids:
        image_of |= {int(position): grid.image for position in grid.positions.ravel()}
    for position, segment in enumerate(segments):
        if segment == 0 and position:
            items[0].append(position)
        elif segment == 1 and image_of[position] in pictures:
            items[pictures[image_of[position]]].append(position)
        else:
            if segment == 1:
                pictures[image_of[position]] = len(items)
            items.append([position])
    return items


def test_a_word_shows_what_it_reads_in_picture_and_words(reader):
    """The answer is at 158 and after: its third token is predicted at 159."""
    flow = synthetic_flow()
    opened = reader(flow)
    assert flow.layout.tokens[153] == " round"
    assert flow.layout.answer_positions[0] == 158
    for word, position, layer in (
        ("word: round", 153, 0),
        ("answer token 3: is", 159, 7),
        ("word: :", 157, 11),
    ):
        own = choose(opened, word, layer)
        expected = flow.text_attention.of(position)[layer]
        shares = [expected[places].sum() for places in items_of(flow)]
        texts = opened.page.locator("#sequence .item .share").all_text_contents()
        assert len(texts) == len(shares)
        for place, share in enumerate(shares):
            text = texts[place]
            assert (text != "") == (share >= 0.01), (place, share)
            if text:
                assert number(text) == pytest.approx(share, abs=0.0051)
        widths = opened.page.eval_on_selector_all(
            "#word-arcs path",
            "paths => paths.map(p => [+p.dataset.to, +p.getAttribute('stroke-width')])",
        )
        drawn = {place for place, share in enumerate(shares) if share >= 0.01 and place != own}
        assert {place for place, _ in widths} <= drawn
        assert len(widths) == min(14, len(drawn))
        for place, width in widths:
            assert width == pytest.approx(max(1, 16 * shares[place]), rel=1e-3)
        says = opened.page.locator("#word-map-says").inner_text()
        at_image = expected[flow.layout.image_positions]
        assert number(says.split(": ")[1].split(" of ")[0]) == pytest.approx(
            at_image.sum(), rel=TWO_DIGITS
        )
        held = np.sort(at_image)[-15:].sum() / at_image.sum()
        assert number(says.split("hold ")[1].split(" of ")[0]) == pytest.approx(held, rel=0.02)
    # an answer token that is chosen above is the word, too
    opened.page.locator("#tokens [data-target='4']").click()
    opened.page.wait_for_selector("#word-says:has-text('answer token 4, “red”')")


BRIGHTEST = """(image) => {
  const canvas = document.querySelectorAll('#word-pictures canvas')[image];
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const light = [];
  for (let row = 0; row < 12; row++) for (let column = 0; column < 12; column++) {
    const x = Math.floor((column + 0.5) * canvas.width / 12);
    const y = Math.floor((row + 0.5) * canvas.height / 12);
    const at = 4 * (y * canvas.width + x);
    light.push((data[at] + data[at + 1] + data[at + 2]) * data[at + 3]);
  }
  return light.indexOf(Math.max(...light));
}"""


def drag(opened, image, start, end):
    """Draw a box, in shares of a picture."""
    canvas = opened.page.locator("#word-pictures canvas").nth(image)
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    spots = [
        (area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)
    ]
    opened.page.mouse.move(*spots[0])
    opened.page.mouse.down()
    opened.page.mouse.move(*spots[1], steps=3)
    opened.page.mouse.up()
    opened.shown()


def read_strip(opened, layers, place, layer):
    """What the strip says of one word and layer."""
    canvas = opened.page.locator("#readers canvas")
    area = canvas.bounding_box()
    canvas.hover(position={"x": (layer + 0.5) * area["width"] / layers, "y": 18 * place + 9})
    return opened.page.locator("#reader-says").inner_text()


def test_a_region_shows_which_words_read_it_at_which_layers(reader):
    image = 1
    flow = synthetic_flow(sizes=((240, 240), (360, 360)), layers=6)
    opened = reader(flow)
    # before that, the map of a word is brightest where it reads most in each picture
    choose(opened, "word: thing", 4)
    position = flow.layout.tokens.index(" thing")
    values = flow.text_attention.of(position)[4][flow.layout.image_positions].reshape(2, 144)
    most = int(values.max(1).argmax())
    assert opened.page.evaluate(BRIGHTEST, most) == values[most].argmax()
    names = opened.page.locator("#sequence .picture .text").all_inner_texts()
    assert names == ["picture 1", "picture 2"]
    assert "Who reads the pictures" in opened.page.locator("#interaction h3").first.inner_text()
    # middles of columns 3, 4, 5 and of rows 6, 7 lie inside
    drag(opened, image, (0.26, 0.52), (0.48, 0.64))
    inside = [
        int(position)
        for (row, column), position in np.ndenumerate(flow.layout.grids[image].positions)
        if 0.26 <= (column + 0.5) / 12 <= 0.48 and 0.52 <= (row + 0.5) / 12 <= 0.64
    ]
    assert len(inside) == 6
    values = flow.text_attention.values[..., inside].astype(float).sum(-1)
    tokens = [flow.layout.tokens[position] for position in flow.text_attention.rows]
    place = tokens.index(" colour")  # the strip has the words in order, then the answer
    for layer in (0, 3):
        text = read_strip(opened, 6, place, layer)
        assert text.startswith(f"“colour” at layer {layer}: ")
        assert text.endswith("of its attention on the marked region.")
        share = values[layer, flow.text_attention.rows == flow.layout.tokens.index(" colour")][0]
        assert number(text.split(": ")[1]) == pytest.approx(share, rel=TWO_DIGITS, abs=6e-4)
    opened.page.mouse.move(0, 0)
    most = values.max()
    says = opened.page.locator("#reader-says").inner_text()
    assert number(says.split(": ")[1]) == pytest.approx(most, rel=TWO_DIGITS)
    opened.page.locator("#word-layer").fill("3")
    opened.shown()
    bars = opened.page.eval_on_selector_all(
        "#sequence button.word .bar", "bars => bars.map(bar => +bar.style.opacity)"
    )
    words = len(flow.layout.user_rows) + 1
    assert np.allclose(bars, values[3, :words] / most, atol=0.01)
    assert opened.page.locator("#word-chart .direct text").all_text_contents()[-1] == "region"
    opened.page.click("#region-clear")
    opened.shown()
    assert opened.page.locator("#region-clear").is_hidden()


def test_a_click_marks_one_token_and_the_keyboard_walks_on(reader):
    flow = synthetic_flow(sizes=((240, 240),), layers=3, grid=(3, 3))
    opened = reader(flow)
    place = flow.text_attention.rows.tolist().index(flow.layout.tokens.index(" round"))

    def share(*cells):
        own = [flow.layout.grids[0].positions[cell] for cell in cells]
        return flow.text_attention.values[1, place, own].astype(float).sum()

    drag(opened, 0, (0.2, 0.4), (0.2, 0.4))
    text = read_strip(opened, 3, place, 1)
    assert number(text.split(": ")[1]) == pytest.approx(share((1, 0)), rel=TWO_DIGITS)
    opened.page.focus("#word-pictures canvas")
    opened.page.keyboard.press("ArrowRight")
    opened.shown()
    text = read_strip(opened, 3, place, 1)
    assert number(text.split(": ")[1]) == pytest.approx(share((1, 1)), rel=TWO_DIGITS)
    opened.page.focus("#word-pictures canvas")
    opened.page.keyboard.press("Shift+ArrowDown")
    opened.shown()
    text = read_strip(opened, 3, place, 1)
    both = share((1, 1), (2, 1))
    assert number(text.split(": ")[1]) == pytest.approx(both, rel=TWO_DIGITS)
    opened.page.focus("#word-pictures canvas")
    opened.page.keyboard.press("Shift+ArrowUp")
    opened.page.keyboard.press("ArrowLeft")
    opened.shown()
    text = read_strip(opened, 3, place, 1)
    assert number(text.split(": ")[1]) == pytest.approx(share((1, 0)), rel=TWO_DIGITS)
    opened.page.focus("#word-pictures canvas")
    opened.page.keyboard.press("Escape")
    opened.shown()
    assert opened.page.locator("#region-clear").is_hidden()


def test_a_region_of_a_picture_that_tokens_share_counts_their_parts(reader):
    flow = synthetic_flow(sizes=((240, 240),), grid=(4, 8), layers=3)
    positions = flow.layout.image_positions
    looks = np.random.default_rng(3).dirichlet(np.full(6, 0.5), len(positions)).reshape(-1, 2, 3)
    boxes = np.empty((2, 3, 4))
    boxes[..., 0::2] = np.stack([np.arange(3) * 80, np.arange(1, 4) * 80], -1)
    boxes[..., 1::2] = np.stack([np.arange(2) * 120, np.arange(1, 3) * 120], -1)[:, None]
    grid = SharedGrid(0, positions, boxes, "queries", looks=looks, how="spread as asked")
    flow = dataclasses.replace(flow, layout=dataclasses.replace(flow.layout, grids=(grid,)))
    opened = reader(flow)
    drag(opened, 0, (0.1, 0.1), (0.6, 0.4))  # the first two patches of the first row
    weights = looks[:, 0, :2].sum(-1)
    share = flow.text_attention.values[2, 0, positions].astype(float) @ weights
    text = read_strip(opened, 3, 0, 2)
    assert number(text.split(": ")[1]) == pytest.approx(share, rel=TWO_DIGITS, abs=6e-4)


def layer_of(opened):
    return int(opened.page.evaluate("document.body.dataset.word").split("/")[1])


def test_space_runs_through_the_layers_and_stops_at_the_end(reader):
    opened = reader(synthetic_flow(layers=40, grid=(3, 3)))  # 280 ms a layer
    page = opened.page
    page.locator("#interaction").scroll_into_view_if_needed()
    page.locator("#word-layer").fill("36")
    opened.shown()
    page.evaluate("document.activeElement.blur()")
    button = page.locator("#interaction .play")
    states = set()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert button.inner_text() == "Pause"
    look = """() => [document.body.ariaBusy, document.body.dataset.word,
      document.querySelector('#word-chart .current-layer text').textContent,
      document.querySelector('#readers .mark').style.left,
      document.querySelector('#interaction .play').getAttribute('aria-pressed')]"""
    for _ in range(200):
        busy, word, marker, strip, running = page.evaluate(look)
        if busy != "true":  # all of it moves together
            states.add((int(word.split("/")[1]), marker, strip))
        if running == "false" and busy != "true":
            break
        page.wait_for_timeout(30)
    assert states == {(layer, f"layer {layer}", f"{2.5 * layer:g}%") for layer in range(36, 40)}
    assert button.inner_text() == "Play again"
    # again from the start, and space pauses
    page.keyboard.press("Space")
    opened.shown()
    assert layer_of(opened) == 0
    page.keyboard.press("Space")
    assert button.inner_text() == "Play the layers"
    # a layer chosen by hand stops the player, too
    button.click()
    page.locator("#word-layer").fill("9")
    opened.shown()
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_timeout(400)
    assert layer_of(opened) == 9


def test_who_asked_for_little_motion_goes_layer_by_layer(reader):
    opened = reader(synthetic_flow(layers=40, grid=(3, 3)), reduced_motion="reduce")
    button = opened.page.locator("#interaction .play")
    assert button.inner_text() == "Next layer"
    before = layer_of(opened)
    button.click()
    opened.page.wait_for_timeout(400)
    opened.shown()
    assert layer_of(opened) == before + 1


def test_what_was_not_measured_or_not_kept_is_said(reader, monkeypatch, tmp_path):
    flow = synthetic_flow(layers=4, without_attention=(2,))
    old = write_report(dataclasses.replace(flow, text_attention=None), tmp_path / "old.html")
    assert "act on each other" not in old.read_text("utf-8")
    monkeypatch.setattr("vlmflow.reports.explain.word_data.MOST_BYTES", 3000)
    opened = reader(flow)
    choose(opened, "word: round", 2)
    assert opened.page.locator("#word-pictures .message").inner_text().startswith("No attention")
    assert opened.page.locator("#word-arcs path").count() == 0
    assert "have no map in this page" in opened.page.locator("#storage").inner_text()
    # The nearest words have theirs, in 4 bits: 15 steps of the root, half a step off.
    assert "stored in 4 bits" in opened.page.locator("#storage").inner_text()
    choose(opened, "word: :", 1)
    values = flow.text_attention.of(157)[1][flow.layout.image_positions]
    says = opened.page.locator("#word-map-says").inner_text()
    held = np.sort(values)[-15:].sum() / values.sum()
    assert number(says.split("hold ")[1].split(" of ")[0]) == pytest.approx(held, rel=0.1)
    choose(opened, "word: What", 1)
    assert "not in this page" in opened.page.locator("#word-pictures .message").inner_text()
