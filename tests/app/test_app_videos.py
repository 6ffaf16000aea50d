"""Videos in the app: uploaded, asked about, kept in memory alone, and refused in one sentence."""

from __future__ import annotations

import re
from urllib.parse import quote

import numpy as np
import pytest

from tests.support.app_server import running_app
from tests.support.browser import running_browser
from tests.support.clips import clip
from tests.support.tiny_video import named
from vlmflow.app.limits import Limits

LIMITS = Limits(picture_bytes=2**20, picture_pixels=5_000, video_seconds=3.0)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An app whose model is a tiny Qwen2-VL, which no directory can hold without torchvision."""
    vlm = named("qwen2_vl").lvlm()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmflow.api.load", lambda *_, **__: vlm)
        with running_app(limits=LIMITS) as running:
            running.vlm = vlm
            yield running


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 16)


def test_an_uploaded_video_is_what_is_asked_about(app, path):
    kept = app.request("POST", "/pictures?name=clip.mp4", path.read_bytes())
    assert (kept.json["width"], kept.json["height"]) == (32, 48)
    shown = app.get(f"/pictures/{kept.json['picture']}")
    assert shown.headers["content-type"] == "image/png"
    answered = app.ask("What moves?", kept.json["picture"], max_new_tokens=3)
    assert answered["text"] == app.vlm.generate(path, "What moves?", max_new_tokens=3)
    exchange = app.app.answers.get(answered["answer"])
    flow = app.vlm.explain(path, "What moves?", max_new_tokens=3)
    assert exchange.flow.layout.frames == flow.layout.frames
    np.testing.assert_allclose(exchange.flow.maps["flow_map"], flow.maps["flow_map"], rtol=1e-5)
    assert "0:01.0–0:01.5" in app.get(f"/answers/{answered['answer']}/report.html").text
    assert exchange.size > len(path.read_bytes())
    wanted = {"how": "settings", "layer": 1, "count": 4, "rank_by": "diversity"}
    assert app.work(f"/answers/{answered['answer']}/truncated", wanted)["status"] == "done"
    assert app.work(f"/answers/{answered['answer']}/removal")["status"] == "done"
    tested = app.work(
        f"/answers/{answered['answer']}/trust", {"signal": "flow_map", "layer": 0, "target": 0}
    )
    assert "this page tests maps of pictures alone" in tested["says"]


@pytest.mark.parametrize(
    ("name", "make", "pattern"),
    [
        ("long.mp4", {"frames": 25}, "long.mp4' is 3 s long, but this app takes 3 s"),
        ("large.mp4", {"frames": 2, "size": (80, 80)}, "large.mp4' is 80 x 80 pixels, more than"),
        ("x\u202ex.mp4", None, r"x⟦U\+202E⟧x.mp4"),
        ("", None, "without a name' cannot be read|has no video"),
    ],
)
def test_what_is_too_much_or_broken_is_one_sentence(app, path, tmp_path, name, make, pattern):
    content = path.read_bytes()
    content = content[: len(content) // 2] if make is None else content
    if make is not None:
        content = clip(tmp_path / name, **make).read_bytes()
    answer = app.request("POST", f"/pictures?name={quote(name)}", content)
    assert answer.status == 400
    assert re.search(pattern, answer.json["error"])


def test_the_page_shows_the_first_frame(app, path):
    with running_browser() as browser:
        page = browser.new_page()
        page.goto(app.url)
        page.locator("#samples button").first.wait_for()
        page.set_input_files("#files", str(path))
        picture = page.locator("#chosen img")
        picture.wait_for()
        assert "/pictures/" in picture.get_attribute("src")
        page.wait_for_function("document.querySelector('#chosen img').naturalWidth === 32")
        page.fill("#question-text", "What moves?")
        page.press("#question-text", "Enter")
        page.locator("#pictures img").first.wait_for(timeout=60_000)
        captions = page.locator("#pictures figcaption").all_inner_texts()
        assert captions[:2] == ["0:00.0–0:00.5", "0:01.0–0:01.5"]
