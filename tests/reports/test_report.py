"""The page of one explained sample, as files and as a reader in a browser meets it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.support.browser import OpenPage, running_browser
from tests.support.synthetic import HOSTILE, synthetic_flow
from vlmflow.errors import InputError
from vlmflow.escape_invisible import clipped, visible
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.lvlm.videos import Frames
from vlmflow.reports.explain.packing import coded
from vlmflow.reports.explain.page import percent, second_line, write_report
from vlmflow.reports.explain.sources import LIBRARIES
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.result.sentences import image_share_sentence
from vlmflow.result.verdict import verdict

LIMIT = 3_000_000
PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(3)>",
    "\u2028</title></style>'\"`${alert(4)}",
    "\u202egnirts\u200b",
)


def with_texts(flow, text):
    """The same result with `text` wherever a model, a prompt or a file name can speak."""
    tokens = tuple(f" {token}{text}" for token in flow.answer_tokens)
    targets = ("answer", *tokens) if len(flow.targets) > 1 else ("answer",)
    return dataclasses.replace(
        flow,
        model=text,
        question=text,
        prompt=text,
        answer="".join(tokens),
        answer_tokens=tokens,
        targets=targets,
        settings={text: text, "command": text, "model": {text: text}},
        versions={text: text},
    )


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts = 0
        self.links = []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.links += [value for name, value in attributes if name in ("src", "href", "action")]


# ------------------------------------------------------------------------------- the file


def test_the_file_is_whole_small_and_names_nothing_to_load(tmp_path):
    path = write_report(synthetic_flow(), tmp_path / "new" / "report.html")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    text = path.read_text("utf-8")
    assert len(text.encode()) < LIMIT
    elements = Elements()
    elements.feed(text)
    # links for a reader to follow, but nothing a browser fetches by itself
    assert all(re.match(r"#|data:|https://arxiv\.org/", link) for link in elements.links)
    assert elements.scripts == 2 + len(LIBRARIES)
    assert "default-src &#39;none&#39;" in text
    assert "unsafe" not in re.search(r'Policy" content="([^"]*)"', text)[1]


@pytest.mark.parametrize("payload", [*PAYLOADS, HOSTILE])
def test_no_text_can_become_markup(tmp_path, payload):
    plain = write_report(synthetic_flow(), tmp_path / "plain.html").read_text("utf-8")
    text = write_report(with_texts(synthetic_flow(), payload), tmp_path / "h.html").read_text(
        "utf-8"
    )
    counts = []
    for page in (plain, text):
        elements = Elements()
        elements.feed(page)
        counts.append((elements.scripts, elements.links))
    assert counts[0] == counts[1]
    head = re.search(r'<script type="application/json" id="head">(.*?)</script>', text)[1]
    assert not set(head) & set("<>&\u2028\u2029")
    assert json.loads(head)["tokens"][0] == visible(" The" + payload)


def test_a_path_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="choose a path you can write to"):
        write_report(synthetic_flow(), tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="directory"):
        write_report(synthetic_flow(), tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_long_answer_stays_under_the_limit_and_says_what_is_missing(tmp_path):
    tokens = tuple(f" word{index}" for index in range(300))
    flow = synthetic_flow(layers=40, grid=(50, 60), answer_tokens=tokens, sizes=((2000, 1500),))
    flow = dataclasses.replace(flow, prompt="long " * 100_000, question="why " * 10_000)
    path = write_report(flow, tmp_path / "report.html")
    assert path.stat().st_size < LIMIT
    text = path.read_text("utf-8")
    kept = int(re.search(r"this page holds maps for (\d+) of 301 targets", text)[1])
    assert kept >= 3
    assert "characters left out here" in text
    assert "stored in 8 bits" in text


def test_noisy_pictures_shrink_until_they_fit(tmp_path):
    flow = synthetic_flow(sizes=((1024, 1024),) * 6)
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    path = write_report(dataclasses.replace(flow, pictures=(noise,) * 6), tmp_path / "r.html")
    assert path.stat().st_size < LIMIT


@pytest.mark.parametrize("bits", [8, 16])
def test_stored_values_are_as_near_as_the_page_says(bits):
    values = np.random.default_rng(1).gamma(0.1, size=(5, 400)).astype(np.float32)
    codes, top = coded(values, bits)
    levels = 2**bits - 1
    back = top[:, None] * (codes / levels) ** 2
    # half a step of the root, at the top of the scale where a step is largest
    assert np.abs(back - values).max() <= 1.01 * top.max() / levels
    assert (back.argmax(axis=1) == values.argmax(axis=1)).all()


def test_the_share_sentence_is_what_was_measured():
    flow = synthetic_flow(layers=3)
    share = np.array(flow.attention_share)
    share[:, 0, 1] = 0.414, 0.2, 0.0312
    flow = dataclasses.replace(flow, attention_share=share)
    assert image_share_sentence(share, flow.layout) == (
        "At layer 0 the answer draws 41\u00a0% of its attention from the image, "
        "at layer 2 it draws 3.1\u00a0%."
    )
    assert "largest at layer 0 (41\u00a0%)" in second_line(flow)
    share[[0, 2]] = 0
    sentence = image_share_sentence(share, flow.layout)
    assert sentence.startswith("At layer 1 the answer draws 20\u00a0%")
    assert image_share_sentence(0 * share, flow.layout).startswith("No layer")


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1e-5, "less than 0.1 %"), (0.0996, "10 %"), (1, "100 %")]
)
def test_percent(share, text):
    assert percent(share).replace("\u00a0", " ") == text


def test_invisible_characters_are_spelt_out():
    assert visible("a\u202eb\u200bc\x1b\ud800\n") == "a⟦U+202E⟧b⟦U+200B⟧c⟦U+001B⟧⟦U+D800⟧\n"
    assert visible("ça va, 你好 \U0001f600") == "ça va, 你好 \U0001f600"
    assert clipped("x" * 100, 10).startswith("xxxxx\n[… 90 characters")


# ------------------------------------------------------------------------------- the page


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
        assert page.page.evaluate("window.ranPayload") == 0
        page.close()


def test_the_page_opens_on_the_first_map_of_all_layers_for_the_whole_answer(reader):
    flow = synthetic_flow()
    opened = reader(flow)
    assert opened.shown() == "flow_map/0/0"
    assert opened.page.locator("h1").inner_text() == verdict(flow).headline
    assert opened.page.locator(".chart-box > svg").count() == 7
    assert opened.page.locator("#layer").is_disabled()
    assert "sum over layers 0–11" in opened.page.locator("#layer-note").inner_text()


def test_one_map_of_the_whole_model_is_not_called_a_sum(reader):
    flow = synthetic_flow()
    about = {"flow_map": dataclasses.replace(flow.about["flow_map"], whole=True)}
    opened = reader(dataclasses.replace(flow, about={**flow.about, **about}))
    assert opened.page.locator("#layer-value").inner_text() == "whole model"
    note = opened.page.locator("#layer-note").inner_text()
    assert "is one for the whole model: choose another signal" in note
    assert "the whole model: entropy" in opened.page.locator("#flow-convergence").inner_text()


def test_pointing_at_the_picture_reads_the_token_under_the_pointer(reader):
    flow = synthetic_flow(sizes=((320, 240),), grid=(12, 12))
    opened = reader(flow)
    opened.page.check("input[name=signal][value=attention]")
    opened.shown()
    canvas = opened.page.locator("#pictures canvas")
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    # pixel (130, 150): column 4, row 7 of the centre crop that starts at x = 40, 20 px a token
    x, y = area["width"] * 130 / 320, area["height"] * 150 / 240
    canvas.hover(position={"x": x, "y": y})
    text = opened.page.locator("#readout").inner_text()
    token, value = 7 * 12 + 4, flow.map("attention", 0)[7 * 12 + 4]
    assert text.startswith(f"Image token {token} (position {flow.layout.image_positions[token]})")
    assert float(text.split(": ")[1].split()[0]) == pytest.approx(value, rel=6e-3)
    assert "x 120–140, y 140–160 px" in text
    canvas.hover(position={"x": 2, "y": y})
    assert opened.page.locator("#readout").inner_text().startswith("Point at")
    assert opened.page.locator("#unseen-note").is_visible()


def test_a_picture_that_tokens_share_is_read_by_patch(reader):
    """Query tokens: the value of a patch is what they give it, and the page says so."""
    flow = synthetic_flow(sizes=((240, 240),), grid=(4, 8))
    positions = flow.layout.image_positions
    looks = np.random.default_rng(3).dirichlet(np.full(6, 0.5), len(positions)).reshape(-1, 2, 3)
    boxes = np.empty((2, 3, 4))
    boxes[..., 0::2] = np.stack([np.arange(3) * 80, np.arange(1, 4) * 80], -1)
    boxes[..., 1::2] = np.stack([np.arange(2) * 120, np.arange(1, 3) * 120], -1)[:, None]
    grid = SharedGrid(0, positions, boxes, "queries", looks=looks, how="spread <b>as asked</b>")
    flow = dataclasses.replace(flow, layout=dataclasses.replace(flow.layout, grids=(grid,)))
    opened = reader(flow)
    opened.shown()
    note = opened.page.locator("#how-note").inner_text()
    assert note.endswith("image tokens have no places of their own: spread <b>as asked</b>.")
    values = flow.grid("flow_map")
    legend = opened.page.locator("#legend").inner_text()
    assert "value per patch" in legend
    canvas = opened.page.locator("#pictures canvas")
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    for row, column in np.ndindex(2, 3):
        x, y = area["width"] * (column + 0.5) / 3, area["height"] * (row + 0.5) / 2
        canvas.hover(position={"x": x, "y": y})
        text = opened.page.locator("#readout").inner_text()
        assert text.startswith(f"Patch at row {row + 1}, column {column + 1}: ")
        read = float(text.split(": ")[1].split()[0])
        assert read == pytest.approx(values[row, column], rel=1e-2)
        assert "from 32 tokens" in text
    largest = opened.page.locator("#live").text_content()
    assert float(largest.split("Largest value ")[1].rstrip(".")) == pytest.approx(
        values.max(), rel=1e-2
    )


def test_frames_of_a_video_are_called_by_their_time(reader):
    flow = synthetic_flow(sizes=((240, 240),) * 3, grid=(4, 4))
    frames = (Frames(0, 0, 1, (0.0, 0.5)), Frames(0, 2, 2, (1.0, 1.0)), None)
    flow = dataclasses.replace(flow, layout=dataclasses.replace(flow.layout, frames=frames))
    opened = reader(flow)
    opened.shown()
    captions = opened.page.locator("#pictures figcaption").all_inner_texts()
    assert captions == ["0:00.0–0:00.5", "0:01.0", "picture 3"]
    names = [
        canvas.get_attribute("aria-label")
        for canvas in opened.page.locator("#pictures canvas").all()
    ]
    assert names[0].startswith("Picture 1 of 3 (0:00.0–0:00.5) with its map.")
    assert opened.page.locator("#pictures img").first.get_attribute("alt") == "0:00.0–0:00.5"
    assert "share image tokens" in opened.page.locator("#frames-note").inner_text()
    assert "All layers, 0:00.0–0:00.5" in opened.page.locator("h3").all_inner_texts()
    share = image_share_sentence(flow.attention_share, flow.layout)
    assert "from the images and frames" in share
    assert share in opened.page.locator(".finding").inner_text()


def test_a_page_of_pictures_says_nothing_of_frames(reader):
    opened = reader(synthetic_flow(sizes=((240, 240),) * 2, grid=(4, 4)))
    opened.shown()
    captions = opened.page.locator("#pictures figcaption").all_inner_texts()
    assert captions == ["picture 1", "picture 2"]
    assert opened.page.locator("#frames-note").count() == 0


def test_the_canvas_is_brightest_where_the_map_is(reader):
    flow = synthetic_flow(sizes=((240, 240),))
    opened = reader(flow)
    opened.shown()
    peak = int(flow.map("flow_map").argmax())
    brightest = opened.page.evaluate(
        """() => {
          const canvas = document.querySelector('#pictures canvas');
          const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          const light = [];
          for (let row = 0; row < 12; row++) for (let column = 0; column < 12; column++) {
            const x = Math.floor((column + 0.5) * canvas.width / 12);
            const y = Math.floor((row + 0.5) * canvas.height / 12);
            const at = 4 * (y * canvas.width + x);
            const [red, green, blue, alpha] = pixels.data.slice(at, at + 4);
            light.push((red + green + blue) * alpha);
          }
          return light.indexOf(Math.max(...light));
        }"""
    )
    assert brightest == peak


def test_everything_is_reached_with_the_keyboard(reader):
    opened = reader(synthetic_flow())
    keys = opened.page.keyboard
    opened.page.focus("input[name=signal][value=flow_map]")
    keys.press("ArrowRight")
    assert opened.shown().startswith("attention/")
    opened.page.focus("#layer")
    keys.press("End")
    assert opened.shown() == "attention/11/0"
    opened.page.evaluate("document.activeElement.blur()")
    keys.press("ArrowLeft")
    assert opened.shown() == "attention/10/0"
    keys.press("Shift+ArrowRight")
    keys.press("Shift+ArrowRight")
    assert opened.shown() == "attention/10/2"
    assert "layer 10" in opened.page.locator("#live").inner_text()
    opened.page.focus("#pictures canvas")
    keys.press("ArrowUp")
    assert "Image token" in opened.page.locator("#live").inner_text()
    opened.page.focus("#tokens [tabindex='0']")
    keys.press("Home")
    assert opened.shown() == "attention/10/0"
    # from the top of the page, Tab alone meets every control, and each shows where it is
    opened.page.focus(".skip")
    met, outlines = set(), []
    for _ in range(60):
        keys.press("Tab")
        name, outline = opened.page.evaluate(
            """() => {
              const at = document.activeElement;
              const seen = at.matches('.choice input') ? at.nextElementSibling : at;
              const name = at.id || at.name || at.tagName + at.className;
              return [name, getComputedStyle(seen).outlineStyle];
            }"""
        )
        met.add(name)
        outlines.append(outline)
        if name == "BODY":
            break
    controls = "theme signal layer word-layer reach steps opacity figure destination arcs shallow"
    assert met >= {*controls.split(), "deep", "copy", "download", "download-all"}
    assert "none" not in outlines[:10]


def test_choosing_a_word_changes_picture_charts_and_table(reader):
    flow = synthetic_flow()
    opened = reader(flow)
    before = opened.page.locator("#attention-chart svg").inner_html()
    opened.page.get_by_role("radio", name="token 4: red", exact=True).click()
    assert opened.shown() == "flow_map/0/4"
    assert opened.page.locator("#attention-chart svg").inner_html() != before
    row = opened.page.locator("#numbers tbody tr[data-layer='5'] td").all_inner_texts()
    image = 100 * flow.attention_share[5, 4, 1]
    assert float(row[1].split("\u00a0")[0]) == pytest.approx(image, abs=0.51)


def test_the_first_sentences_follow_the_chosen_token(reader):
    flow = synthetic_flow()
    tokens = len(flow.answer_tokens)
    effect = PictureEffect(np.full(tokens, 0.9), np.linspace(0, 0.4, tokens), ("blue",) * tokens)
    flow = dataclasses.replace(flow, picture_effect=effect)
    opened = reader(flow)
    for target in (0, 4, 2):
        opened.page.locator(f"#tokens [data-target='{target}']").click()
        opened.shown()
        said = verdict(flow, target)
        assert opened.page.locator("h1").inner_text() == said.headline
        assert opened.page.locator("#picture-says").inner_text() == said.picture
        assert opened.page.locator("#box-note").is_visible() == (said.reading is not None)


def test_an_outline_leaves_the_picture_as_it_is(reader):
    """Inside the strongest token nothing is painted; on its edge there is a line."""
    flow = synthetic_flow()
    opened = reader(flow)
    opened.page.check("input[name=look][value=outline]")
    opened.shown()
    values = flow.map("flow_map")
    x0, y0, x1, y1 = flow.token_boxes()[values.argmax()]
    width, height = flow.layout.image_sizes[0]
    middle = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height]
    edges = [[x0 / width, middle[1]], [x1 / width, middle[1]], [middle[0], y0 / height]]
    script = """(places) => {
        const canvas = document.querySelector('#pictures canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return places.map(([x, y]) => {
            const [left, top] = [Math.round(x * canvas.width), Math.round(y * canvas.height)];
            let most = 0;
            for (let row = top - 3; row < top + 4; row++)
                for (let column = left - 3; column < left + 4; column++)
                    most = Math.max(most, data[4 * (row * canvas.width + column) + 3]);
            return most;
        });
    }"""
    inside, *lines = opened.page.evaluate(script, [middle, *edges])
    assert inside == 0
    assert max(lines) > 0
    assert opened.page.locator("#opacity").is_hidden()
    assert "quarter of the map" in opened.page.locator("#outline-note").inner_text()


def test_labels_of_curves_are_led_to_where_the_curves_end(reader):
    flow = synthetic_flow()
    opened = reader(flow)
    leaders = opened.page.locator("#attention-chart .leader")
    starts = [
        float(leader.get_attribute("d").split(",")[1].split("L")[0]) for leader in leaders.all()
    ]
    shares = flow.attention_share[-1, 0]
    assert len(starts) == 4
    slope = np.polyfit(shares, starts, 1)
    np.testing.assert_allclose(np.polyval(slope, shares), starts, atol=0.1)
    assert slope[0] < 0


def test_maps_without_meaning_say_so_instead_of_drawing(reader):
    opened = reader(synthetic_flow(without_attention=(3,)))
    message = opened.page.locator("#pictures .message")
    for signal, layer, word in (
        ("llava_cam", 11, "Undefined"),
        ("llava_cam", 10, "Empty"),
        ("saliency", 3, "No attention here"),
    ):
        opened.page.check(f"input[name=signal][value={signal}]")
        opened.page.locator("#layer").fill(str(layer))
        assert opened.shown() == f"{signal}/{layer}/0"
        assert message.inner_text().startswith(word)
        assert opened.page.locator("#legend svg").count() == 0
    opened.page.locator("#layer").fill("5")
    opened.shown()
    assert message.is_hidden()
    cells = opened.page.locator("#numbers tbody tr[data-layer='3'] td").all_inner_texts()
    assert cells[:4] == ["–"] * 4


def test_colours_keep_magnitudes_across_layers(reader):
    flow = synthetic_flow()
    opened = reader(flow)
    opened.page.check("input[name=signal][value=attention]")
    opened.page.locator("#layer").fill("9")
    opened.shown()
    top = "[...document.querySelectorAll('#legend .tick text')].at(-1).textContent"
    own = float(opened.page.evaluate(top))
    opened.page.check("input[name=reach][value=all]")
    opened.shown()
    assert own == pytest.approx(flow.map("attention", 9).max(), rel=1e-2)
    everywhere = flow.maps["attention"][:, 0].max()
    assert float(opened.page.evaluate(top)) == pytest.approx(everywhere, rel=1e-2)


def test_the_arcs_are_as_wide_as_the_flow(reader):
    flow = synthetic_flow()
    opened = reader(flow)
    opened.page.select_option("#shallow", "2")
    opened.shown()
    widths = opened.page.eval_on_selector_all(
        "#shallow-arcs path",
        "paths => paths.map(path => Number(path.getAttribute('stroke-width')))",
    )
    share = flow.attention_share[2, 0]
    assert np.allclose(np.array(widths[:3]) / widths[0], share[:3] / share[0], rtol=1e-3)


def test_the_csv_holds_the_numbers_and_no_formulas(reader):
    flow = with_texts(synthetic_flow(), "")
    hostile = tuple("=1+1" for _ in flow.answer_tokens)
    flow = dataclasses.replace(flow, answer_tokens=hostile, targets=("answer", *hostile))
    opened = reader(flow)
    with opened.page.expect_download() as waiting:
        opened.page.click("#download-all")
    with waiting.value.path().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 12
    assert rows[-1]["token"] == "'=1+1"
    measured = [float(row["attention_image"]) for row in rows]
    assert np.allclose(measured, flow.attention_share[:, :, 1].T.ravel(), rtol=1e-3, atol=1e-4)


def test_the_table_sorts(reader):
    opened = reader(synthetic_flow())
    opened.page.locator("#numbers thead button").nth(2).click()
    text = opened.page.locator("#numbers tbody td:nth-child(3)").all_inner_texts()
    values = [float(cell.split("\u00a0")[0]) for cell in text]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("payload", ["".join(PAYLOADS), HOSTILE])
def test_hostile_texts_show_as_text_and_run_nothing(reader, payload):
    opened = reader(with_texts(synthetic_flow(layers=3), payload))
    said = visible(payload)
    assert opened.page.locator("#question").text_content() == said
    assert opened.page.locator(".top .model").text_content() == said
    assert said in opened.page.locator("footer").text_content()
    for target in range(5):
        opened.page.locator(f"#tokens [data-target='{target}']").click()
        assert opened.shown() == f"flow_map/0/{target}"
    token = opened.page.locator("#tokens [data-target='4']").text_content()
    assert said.strip().replace("\n", "⏎") in token
    assert not opened.page.locator("img[src='x']").count()


@pytest.mark.parametrize("width", [400, 900])
def test_nothing_sticks_out_of_a_narrow_window(reader, width):
    flow = with_texts(synthetic_flow(sizes=((240, 320), (500, 100))), "x" * 150)
    opened = reader(flow, viewport={"width": width, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_contrast_in_both_themes(reader, theme):
    opened = reader(synthetic_flow(layers=3), color_scheme=theme)
    colours = opened.page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const names = ['paper', 'ink', 'soft', 'quiet', 'image', 'user', 'system', 'answer'];
          const value = (name) => style.getPropertyValue(`--${name}`).trim();
          return Object.fromEntries(names.map(name => [name, value(name)]));
        }"""
    )

    def light(colour):
        parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    def contrast(name):
        pair = sorted([light(colours[name]) + 0.05, light(colours["paper"]) + 0.05])
        return pair[1] / pair[0]

    # WCAG 2.2: 4.5 for text, 3 for lines and marks
    assert all(contrast(name) >= 4.5 for name in ("ink", "soft", "quiet"))
    assert all(contrast(name) >= 3 for name in ("image", "user", "system", "answer"))
    opened.page.click("#theme")
    assert opened.page.locator("html").get_attribute("data-theme") != theme


def test_results_at_the_edges_open(reader):
    layout = synthetic_flow().layout
    for flow in (
        synthetic_flow(layers=1, answer_tokens=("Yes",)),
        synthetic_flow(per_token=False),
        synthetic_flow(layers=2, without_attention=(0, 1)),
        dataclasses.replace(
            synthetic_flow(),
            layout=dataclasses.replace(layout, grids=(), grids_missing="No pixels."),
        ),
        dataclasses.replace(synthetic_flow(), maps={}, flags={}),
        dataclasses.replace(synthetic_flow(), saliency_mean=None, saliency_sum=None),
    ):
        assert reader(flow).shown()


def test_without_gradients_the_page_shows_no_saliency(reader):
    opened = reader(dataclasses.replace(synthetic_flow(), saliency_mean=None, saliency_sum=None))
    opened.shown()
    assert opened.page.locator("#saliency-chart").count() == 0
    assert opened.page.locator("#attention-chart svg").count() == 1
    assert opened.page.locator("#shallow-arcs svg").count() == 1
    heads = opened.page.locator("#numbers thead").inner_text()
    assert "attention flow" in heads
    assert "saliency flow" not in heads


def test_a_token_whose_map_is_left_out_says_so(reader, monkeypatch):
    monkeypatch.setattr("vlmflow.reports.explain.page.MAX_BYTES", 600_000)
    flow = synthetic_flow(grid=(30, 30))
    opened = reader(flow)
    opened.page.locator("#tokens [data-target='4']").click()
    opened.shown()
    assert "not in this page" in opened.page.locator("#pictures .message").inner_text()
    assert opened.page.locator("#attention-chart svg").count() == 1
