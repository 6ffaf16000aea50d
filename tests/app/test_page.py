"""A browser goes through the app as a person does, from an upload to the downloads."""

from __future__ import annotations

import io
import os
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.support.app_server import running_app
from tests.support.browser import OpenPage, running_browser
from vlmflow.app.pictures import SAMPLE_NAMES, sample_picture
from vlmflow.escape_invisible import shown
from vlmflow.truncation.exit_policy import ExitPolicy

PICTURE, QUESTION = sample_picture(SAMPLE_NAMES[0])
CAPTION = SAMPLE_NAMES[3]
ALL = os.environ.get("VLMFLOW_HARD_TESTS") == "all"

# How much of a picture is darkened.
CROSSED_OUT = """() => {
  const canvas = document.querySelector("#removed-pictures canvas");
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let crossed = 0;
  for (let i = 3; i < data.length; i += 4) crossed += data[i] > 100;
  return crossed / (width * height);
}"""

# What can be operated, and a screen reader has no name for.
UNNAMED = """() => {
  const all = "button, input, select, textarea, a[href], [tabindex='0']";
  const named = (element) => element.getAttribute("aria-label") || element.textContent.trim()
    || element.labels?.length || element.title
    || document.getElementById(element.getAttribute("aria-labelledby"))?.textContent;
  return [...document.querySelectorAll(all)]
    .filter((element) => element.checkVisibility() && !named(element))
    .map((element) => element.outerHTML.slice(0, 120));
}"""


@pytest.fixture(scope="module")
def app():
    with running_app() as running:
        running.ask(QUESTION, SAMPLE_NAMES[0], max_new_tokens=1)  # loads the model
        yield running


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


class Visitor:
    """One person with a browser of their own, and everything it asked for and complained about."""

    def __init__(self, browser, app, path="/", **context):
        self.context = browser.new_context(accept_downloads=True, **context)
        self.context.add_init_script("window.ranPayload = 0; window.alert = () => ranPayload++;")
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(app.url + path)
        self.page.wait_for_selector("body[data-model=ready]")
        self.url = app.url

    def answered(self):
        self.page.wait_for_selector("body[data-answer]:not([aria-busy=true])")
        return self.page.get_attribute("body", "data-answer")

    def ask(self, question):
        self.page.fill("#question-text", question)
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def leave(self):
        """Nothing was asked of anybody else, nothing complained, nothing written by others ran."""
        outside = [
            url for url in self.requests if not url.startswith((self.url + "/", "data:", "blob:"))
        ]
        assert outside == []
        assert [line for line in self.complaints if "willReadFrequently" not in line] == []
        assert self.page.evaluate("window.ranPayload") == 0
        self.context.close()


@contextmanager
def visiting(browser, app, path="/", **context):
    visitor = Visitor(browser, app, path, **context)
    yield visitor
    visitor.leave()


def png(picture):
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


def test_from_an_upload_to_the_downloads(app, browser, tmp_path):
    with visiting(browser, app, viewport={"width": 1280, "height": 900}) as visitor:
        page = visitor.page
        upload = {"name": "mine.png", "mimeType": "image/png", "buffer": png(PICTURE.image)}
        page.set_input_files("#files", upload)
        page.wait_for_selector("#chosen img")
        visitor.ask(QUESTION)
        answer = visitor.answered()
        assert page.inner_text("#reply") == app.app.answers.get(answer).flow.answer
        assert page.inner_text("#question") == QUESTION

        # A word of the question: its map, its curves and its arcs follow.
        word = page.locator("#sequence").get_by_role("radio", name="word: brown", exact=True)
        before = page.inner_text("#word-says"), page.inner_html("#word-chart")
        word.click()
        page.wait_for_selector("body:not([aria-busy=true])")
        assert word.get_attribute("aria-checked") == "true"
        assert (page.inner_text("#word-says"), page.inner_html("#word-chart")) != before
        assert page.locator("#word-arcs path").count() > 0
        # The layer: everything that follows it is drawn without asking the server.
        sent = len(visitor.requests)
        page.check("input[name=signal][value=attention]")
        for layer in (0, 7, 3):
            page.locator("#layer").fill(str(layer))
            page.wait_for_selector(f"body[data-shown='attention/{layer}/0']:not([aria-busy=true])")
        assert len(visitor.requests) == sent

        # Without image tokens: both answers, their costs, and what was removed where.
        page.fill("#remove-keep", "10")
        page.locator("#remove-layer").fill("5")
        page.get_by_role("button", name="Answer without them").click()
        page.wait_for_selector("#removed:not([hidden])")
        page.wait_for_selector("body[data-shown='attention/5/0']:not([aria-busy=true])")
        facts = app.app.answers.get(answer).truncated
        assert facts["name"] == "layer=5,keep=0.1,rank_by=last_attention"
        table = page.inner_text("#removed-table")
        assert facts["truncated"]["answer"] in table
        assert ("the same" in table) == facts["same_answer"]
        dark = page.evaluate(CROSSED_OUT)
        flow = app.app.answers.get(answer).flow
        x0, y0, x1, y1 = flow.token_boxes()[~flow.truncated.seen[5]].T
        width, height = flow.layout.image_sizes[0]
        removed = ((x1 - x0) * (y1 - y0)).sum() / (width * height)
        assert removed > 0.5
        assert dark == pytest.approx(removed, abs=0.03)
        assert page.get_attribute("#removed-chart svg", "aria-label").count(",") >= 20

        page.get_by_role("button", name="Measure the removal curve").click()
        page.wait_for_selector("#curve:not([hidden])")
        cliff = app.app.answers.get(answer).removal["cliff"]
        assert f"cliff is at layer {cliff}" in page.inner_text("#curve-says")
        assert page.locator("#curve .cliff-mark").count() == 2

        page.get_by_role("button", name="Test the map shown").click()
        page.wait_for_selector("#trust")
        assert app.app.answers.get(answer).flow.trust[0].signal == "attention"
        # The page stayed where it was: same map, and what was measured before is still there.
        page.wait_for_selector("body[data-shown='attention/5/0']:not([aria-busy=true])")
        assert page.locator("#removed-table tr").count() > 5
        assert page.locator("#curve-kl svg").count() == 1

        with page.expect_download() as report:
            page.get_by_role("link", name="Download report").click()
        with page.expect_download() as numbers:
            page.get_by_role("link", name="Download numbers").click()
        report.value.save_as(tmp_path / "report.html")
        numbers.value.save_as(tmp_path / "numbers.zip")
        with zipfile.ZipFile(tmp_path / "numbers.zip") as archive:
            names = {"flow.json", "flow.safetensors", "truncated.json", "removal.json"}
            assert set(archive.namelist()) == names
        opened = OpenPage(browser, tmp_path / "report.html")  # without any network
        assert QUESTION in opened.page.inner_text("#question")
        assert opened.outside_requests() == []
        opened.close()
        link = page.url

    # The link opens the same state in another browser; a changed one does not.
    with visiting(browser, app, link.removeprefix(app.url)) as visitor:
        page = visitor.page
        assert visitor.answered() == answer
        page.wait_for_selector("body[data-shown='attention/5/0']:not([aria-busy=true])")
        word = page.locator("#sequence").get_by_role("radio", name="word: brown", exact=True)
        assert word.get_attribute("aria-checked") == "true"
        assert page.input_value("#question-text") == QUESTION
        assert page.locator("#removed-table tr").count() > 5
        assert page.locator("#curve-kl svg").count() == 1
        assert page.locator("#chosen img").evaluate("image => image.naturalWidth") > 0
        gone = answer[:-1] + ("y" if answer.endswith("x") else "x")
        page.goto(f"{app.url}/answers/{gone}#layer=99&word=x&signal=<b>")
        page.wait_for_selector("#ask-work [role=alert]")
        assert "not kept any more" in page.inner_text("#ask-work")
        visitor.complaints = [line for line in visitor.complaints if "404" not in line]


@contextmanager
def slowed(app, pause=0.15):
    """The model of an app takes its time for each token, so that something can happen meanwhile."""
    passes = []

    def wait(_module, _inputs):
        passes.append(time.monotonic())
        time.sleep(pause)

    handle = app.app.engine._vlm.model.register_forward_pre_hook(wait)
    try:
        yield passes
    finally:
        handle.remove()


def test_an_answer_is_stopped_in_its_middle_within_one_token(app, browser):
    with visiting(browser, app) as visitor, slowed(app) as passes:
        page = visitor.page
        page.get_by_role("button", name="Sample 4").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("#reply:text-matches('.{4}')")
        (job,) = [job for job in app.app.engine.worker._jobs.values() if job.status == "running"]
        page.get_by_role("button", name="Stop").click()
        while not job.is_cancelled:
            time.sleep(0.005)
        at_stop = len(passes)
        page.wait_for_selector("#ask-work:has-text('Stopped.')")
        assert job.status == "cancelled"
        assert len(passes) <= at_stop + 1
        partial = page.inner_text("#reply")
        assert partial
        assert page.get_attribute("body", "data-answer") is None
        # And the next question is answered as if nothing had happened.
        page.get_by_role("button", name="Sample 1").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        answer = visitor.answered()
    whole = app.app.engine._vlm.generate(
        sample_picture(CAPTION)[0].image, sample_picture(CAPTION)[1]
    )
    assert whole.startswith(partial)
    assert len(partial) < len(whole)
    assert app.app.answers.get(answer).question == QUESTION


def test_two_people_at_once_each_get_their_own(app, browser):
    with visiting(browser, app) as one, visiting(browser, app) as other, slowed(app, 0.1):
        one.page.get_by_role("button", name="Sample 4").click()
        other.page.get_by_role("button", name="Sample 1").click()
        one.page.get_by_role("button", name="Ask", exact=True).click()
        one.page.wait_for_selector("#reply:text-matches('.{4}')")
        other.page.get_by_role("button", name="Ask", exact=True).click()
        other.page.wait_for_selector("#ask-work:has-text('1 other job runs first')")
        names = one.answered(), other.answered()
        assert names[0] != names[1]
        for visitor, name, sample in zip(
            (one, other), names, (CAPTION, SAMPLE_NAMES[0]), strict=True
        ):
            kept = app.app.answers.get(name)
            assert kept.picture_ids == (sample,)
            assert visitor.page.inner_text("#question") == sample_picture(sample)[1]
            assert visitor.page.inner_text("#reply") == kept.flow.answer
        assert one.page.inner_text("#reply") != other.page.inner_text("#reply")


def test_a_published_method_and_a_policy_are_chosen_on_the_page(app, browser, tmp_path):
    policy = ExitPolicy(layer=(4, 8), keep=(0, 0), signal="hidden_step", thresholds=(-9.0, -9.0))
    policy.save(tmp_path / "my-policy.json")
    with visiting(browser, app) as visitor:
        page = visitor.page
        page.get_by_role("button", name="Sample 1").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        visitor.answered()
        page.get_by_label("Published method").check()
        page.select_option("#remove-preset", "vtw")
        page.get_by_role("button", name="Answer without them").click()
        page.wait_for_selector("#removed-verdict:has-text('vtw: ')")
        page.get_by_label("Certified policy").check()
        page.get_by_role("button", name="Answer without them").click()
        page.wait_for_selector("#remove-work [role=alert]:has-text('Choose the file')")
        page.set_input_files("#remove-policy", tmp_path / "my-policy.json")
        page.get_by_role("button", name="Answer without them").click()
        page.wait_for_selector("#removed-verdict:has-text('my-policy.json: ')")
        assert "at layer 4" in page.inner_text("#removed-verdict")
        page.set_input_files("#remove-policy", Path(__file__))
        page.get_by_role("button", name="Answer without them").click()
        page.wait_for_selector("#remove-work [role=alert]:has-text('it is not JSON')")
        assert "my-policy.json" in page.inner_text("#removed-verdict")  # what was measured stays


def test_work_of_a_page_that_was_closed_is_given_up(app, browser, monkeypatch):
    monkeypatch.setattr(app.app.engine.worker, "_unwatched", 0.1)
    with slowed(app) as passes:
        with visiting(browser, app) as visitor:
            visitor.page.get_by_role("button", name="Sample 4").click()
            visitor.page.get_by_role("button", name="Ask", exact=True).click()
            visitor.page.wait_for_selector("#reply:text-matches('.{4}')")
            jobs = app.app.engine.worker._jobs.values()
            (job,) = [job for job in jobs if job.status == "running"]
        while job.status == "running":
            time.sleep(0.05)
    assert job.status == "cancelled"
    at_end = len(passes)
    time.sleep(0.3)
    assert len(passes) == at_end


def test_broken_and_huge_uploads_are_refused_on_the_page(app, browser, tmp_path):
    with visiting(browser, app) as visitor:
        page = visitor.page
        for name, content, says in (
            ("cut.png", png(PICTURE.image)[:900], "cut.png"),
            ("song.png", b"ID3" + bytes(500), "not a picture"),
            ("bomb.png", png(Image.new("1", (9000, 9000))), "more than 40,000,000"),
            ("huge.png", bytes(20 * 2**20 + 1), "larger than 20 MiB"),
        ):
            (tmp_path / name).write_bytes(content)
            page.set_input_files("#files", tmp_path / name)
            page.wait_for_selector(f"#ask-work [role=alert]:has-text('{says}')")
            assert page.locator("#chosen img").count() == 0
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("#ask-work [role=alert]:has-text('Drop in a picture first')")
        visitor.complaints = [line for line in visitor.complaints if "400" not in line]


def test_an_open_app_is_used_with_its_token(browser):
    with running_app(token="the-token") as app:
        context = browser.new_context()
        page = context.new_page()
        assert page.goto(app.url).status == 401
        page.goto(f"{app.url}/?token=the-token")
        page.wait_for_selector("body[data-page=ready]")
        assert "token" not in page.url
        page.wait_for_selector("#samples img")
        page.wait_for_selector("body[data-model=ready]")
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_a_keyboard_are_enough(app, browser, scheme):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visiting(browser, app, color_scheme=scheme, **phone) as visitor:
        page = visitor.page
        page.get_by_role("button", name="Sample 1").press("Enter")
        page.get_by_label("Question", exact=True).press("Enter")
        visitor.answered()
        page.locator("#remove-go").press("Enter")
        page.wait_for_selector("#removed:not([hidden])")
        page.locator("#curve-go").press("Enter")
        page.wait_for_selector("#curve:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.activeElement.id") != ""
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        unnamed = page.evaluate(UNNAMED)
        assert unnamed == []
        ids = page.eval_on_selector_all("[id]", "all => all.map(({ id }) => id)")
        assert len(ids) == len(set(ids))


PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<svg/onload=alert(4)>",
    "</textarea><script>alert(5)</script>",
    "\"><iframe srcdoc='<script>parent.alert(6)</script>'>",
    "javascript:alert(7)",
    "{{7*7}} {% raw %} ${alert(8)} #{9}",
    "\u202egnirts\u202c \u200b\u2066\u2069",
    "\x00\x01\x1b[2J\x7f\x9b",
    "\u2028\u2029\ufeff\ufffe\uffff",
    "\U000e0041\U000e0042 \U0001f469\u200d\U0001f4bb",
    "a\u0300" + "\u0301" * 300,
    "../../../../etc/passwd",
    "..\\..\\boot.ini",
    "CON.png",
    "%2e%2e%2f%00",
    "'; DROP TABLE answers; --",
    "\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "data: {\"status\": \"done\"}\n\nevent: x\n\n",
    "<!--", "]]>", "&lt;b&gt;&amp;", "\\u003cscript\\u003e", "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>", "<style>*{display:none}</style>",
    "<form action=//evil.example><input name=a>", "<a href='javascript:alert(9)'>x</a>",
    "<math><mi xlink:href='javascript:alert(10)'>", "__proto__", "constructor", "toString",
    "NaN", "null", "undefined", "-1", "1e999", "=cmd|' /C calc'!A0", "@SUM(1)", "+1", "\t\t",
    "x" * 3900, "🙂" * 900, "ﷺ" * 200, "ا ب ت", "\ud83d", "<image>", "<pad>", "</s><s>",
    "<|im_start|>system", "[INST]", "USER: ASSISTANT:",
)  # fmt: skip


def test_there_are_fifty_of_them():
    assert len(set(PAYLOADS)) >= 50


def test_hostile_questions_and_file_names_are_answered_or_refused_in_a_sentence(app):
    picture = png(PICTURE.image.resize((60, 60)))
    refused = 0
    for text in PAYLOADS:
        name = text.encode("utf-8", "surrogatepass").hex("%")
        kept = app.request("POST", f"/pictures?name=%{name}", picture)
        assert kept.status == 200
        broken = app.request("POST", f"/pictures?name=%{name}", b"no picture")
        assert broken.status == 400
        assert "\n" not in broken.json["error"]
        result = app.ask(text, kept.json["picture"], max_new_tokens=1)
        refused += result["status"] != "done"
        if result["status"] == "done":
            assert app.app.answers.get(result["answer"]).question == text
        else:
            assert result["status"] in ("failed", "refused")
            assert "inside vlmflow" not in result["says"], text
            assert len(result["says"]) < 5000
    assert refused <= 8  # empty, not Unicode, or what the tokenizer takes for its own


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=str(number))
        for number, text in enumerate(PAYLOADS)
        if ALL or number in (1, 4, 8, 9, 40)
    ],
)
def test_hostile_texts_are_shown_and_not_run(app, browser, text):
    if any("\ud800" <= character < "\ue000" for character in text):
        text = text.replace("\ud83d", "\ufffd")
    with visiting(browser, app) as visitor:
        page = visitor.page
        upload = {"name": "x.png", "mimeType": "image/png", "buffer": png(PICTURE.image)}
        page.set_input_files("#files", upload)
        page.wait_for_selector("#chosen img")
        page.fill("#longest", "1")
        page.evaluate("text => { document.querySelector('#question-text').value = text; }", text)
        sent = page.input_value("#question-text")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("body[data-answer], #ask-work [role=alert]")
        if page.get_attribute("body", "data-answer") is not None:
            visitor.answered()
            assert page.text_content("#question") == shown(sent, 2000)
            assert page.locator("#result script:not([type='application/json'])").count() == 0
            assert page.locator("iframe, base, form[action], [onerror], [onload]").count() == 0
        page.set_input_files(
            "#files", {**upload, "buffer": b"no picture", "name": text[:200] or "x"}
        )
        page.wait_for_selector("#ask-work [role=alert]")
        assert page.evaluate("window.ranPayload") == 0
        visitor.complaints = [line for line in visitor.complaints if "400" not in line]
