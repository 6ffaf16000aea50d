"""What the app measures is what the library measures, for everyone their own."""

from __future__ import annotations

import io
import json
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import vlmflow
from tests.support.app_server import running_app
from tests.support.tiny import tiny_llava
from vlmflow.app.interruptible import interruptible
from vlmflow.app.limits import Limits
from vlmflow.app.pictures import SAMPLE_NAMES, sample_picture
from vlmflow.app.work import offers
from vlmflow.result.information_flow import InformationFlow
from vlmflow.truncation.exit_policy import ExitPolicy

SAMPLE = SAMPLE_NAMES[0]
QUESTION = sample_picture(SAMPLE)[1]
BOUNDS = {"picture_bytes": 2**20, "picture_pixels": 300_000, "waiting": 64}


@pytest.fixture(scope="module")
def app():
    with running_app(limits=Limits(**BOUNDS)) as running:
        yield running


@pytest.fixture(scope="module")
def vlm(app):
    """The very model of the app, which is at rest between requests."""
    app.ask("Ready?", SAMPLE, max_new_tokens=1)
    return app.app.engine._vlm


@pytest.fixture(scope="module")
def answer(app):
    shown = app.ask(QUESTION, SAMPLE)
    assert shown["status"] == "done", shown
    return shown["answer"]


def unpacked(app, answer, folder):
    content = app.get(f"/answers/{answer}/numbers.zip").body
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
        return set(archive.namelist())


def test_the_numbers_are_those_of_the_library(app, vlm, answer, tmp_path):
    assert unpacked(app, answer, tmp_path) >= {"flow.json", "flow.safetensors"}
    mine, flow = (
        vlm.explain(sample_picture(SAMPLE)[0].image, QUESTION),
        InformationFlow.load(tmp_path),
    )
    assert flow.answer == mine.answer
    assert flow.settings["answer_ids"] == mine.settings["answer_ids"]
    for signal in mine.signals:
        np.testing.assert_allclose(flow.maps[signal], mine.maps[signal], rtol=1e-5, atol=1e-7)


def test_the_report_is_the_one_that_the_library_writes(app, answer, tmp_path):
    response = app.get(f"/answers/{answer}/report.html")
    assert response.headers["content-disposition"] == 'attachment; filename="report.html"'
    unpacked(app, answer, tmp_path)
    regions = sample_picture(SAMPLE)[0].regions
    page = vlmflow.report(InformationFlow.load(tmp_path), tmp_path / "r.html", regions=regions)
    assert response.body == page.read_bytes()


def test_the_truncated_answer_stands_beside_the_untouched(app, vlm, answer):
    wanted = {"how": "settings", "layer": 5, "count": 20, "rank_by": "diversity"}
    assert app.work(f"/answers/{answer}/truncated", wanted)["status"] == "done"
    facts = app.get(f"/answers/{answer}/summary").json["truncated"]
    truncation = vlmflow.Truncation(5, 20, "diversity")
    picture = sample_picture(SAMPLE)[0].image
    assert facts["truncated"]["answer"] == vlm.generate(picture, QUESTION, truncation=truncation)
    assert facts["untouched"]["answer"] == vlm.generate(picture, QUESTION)
    assert facts["same_answer"] == (facts["truncated"]["ids"] == facts["untouched"]["ids"])
    with truncation(vlm.model) as run:
        vlm.model.generate(**vlm.prepare(picture, QUESTION).inputs, max_new_tokens=1)
    assert facts["truncated"]["cached_tokens"] == run.tokens_per_layer[0].tolist()
    assert 0 < facts["truncated"]["flops"]["measured_share"] < 1
    assert all(facts[side][time] > 0 for side in ("truncated", "untouched")
               for time in ("prefill", "per_token", "end_to_end"))  # fmt: skip
    page = app.get(f"/answers/{answer}/page").text
    assert "layer=5, keep=20, rank_by=diversity" in page
    preset = app.work(f"/answers/{answer}/truncated", {"how": "preset", "name": "vtw"})
    assert preset["status"] == "done"
    assert app.get(f"/answers/{answer}/summary").json["truncated"]["name"] == "vtw"


def test_a_policy_lets_image_tokens_go(app, vlm, answer, tmp_path):
    policy = ExitPolicy(layer=(4, 8), keep=(0, 0), signal="hidden_step", thresholds=(-9.0, -9.0))
    policy.save(tmp_path / "p.json")
    wanted = {"how": "policy", "name": "p\u202e.json", "text": (tmp_path / "p.json").read_text()}
    assert app.work(f"/answers/{answer}/truncated", wanted)["status"] == "done"
    facts = app.get(f"/answers/{answer}/summary").json["truncated"]
    picture = sample_picture(SAMPLE)[0].image
    assert facts["truncated"]["answer"] == vlm.generate(picture, QUESTION, policy=policy)
    with policy(vlm.model) as run:
        vlm.generate(picture, QUESTION, max_new_tokens=1)
    assert facts["truncated"]["exit_layer"] == run.exit_layers[0]
    assert facts["name"] == "p⟦U+202E⟧.json"


def test_the_removal_curve_is_the_librarys_and_is_taken_away_with_the_numbers(
    app, vlm, answer, tmp_path
):
    assert app.work(f"/answers/{answer}/removal")["status"] == "done"
    facts = app.get(f"/answers/{answer}/summary").json["removal"]
    curve = vlm.removal_curve(sample_picture(SAMPLE)[0].image, QUESTION)
    np.testing.assert_allclose(facts["kl"], curve.mean_kl, rtol=1e-4, atol=1e-6)
    assert facts["same_answer"] == curve.same_answer.tolist()
    assert facts["cliff"] == vlmflow.cliff(curve, facts["tolerance"]).layer
    assert "removal.json" in unpacked(app, answer, tmp_path)
    assert json.loads((tmp_path / "removal.json").read_text()) == facts


def test_a_test_of_a_map_comes_into_the_report_once(app, vlm, answer, tmp_path):
    wanted = {"signal": "saliency", "layer": 4, "target": 0}
    for _ in range(2):
        assert app.work(f"/answers/{answer}/trust", wanted)["status"] == "done"
    unpacked(app, answer, tmp_path)
    (tested,) = InformationFlow.load(tmp_path).trust
    assert (tested.signal, tested.layer, tested.steps) == ("saliency", 4, 8)
    assert 'id="trust"' in app.get(f"/answers/{answer}/page").text


WRONG_WORK = [
    ("truncated", {}),
    ("truncated", {"how": ["settings"]}),
    ("truncated", {"how": "settings", "layer": 99, "count": 0, "rank_by": "diversity"}),
    ("truncated", {"how": "settings", "layer": 1, "count": -1, "rank_by": "diversity"}),
    ("truncated", {"how": "settings", "layer": 1, "share": 1e400, "rank_by": "diversity"}),
    ("truncated", {"how": "settings", "layer": 1, "share": "all", "rank_by": "diversity"}),
    ("truncated", {"how": "settings", "layer": "1,keep=0", "count": 0, "rank_by": "diversity"}),
    ("truncated", {"how": "settings", "layer": 1, "count": 2, "rank_by": "__import__('os')"}),
    ("truncated", {"how": "settings", "layer": 1, "count": 2, "rank_by": {"name": "random"}}),
    ("truncated", {"how": "settings", "layer": 1, "count": 2, "share": 0.5, "rank_by": "random"}),
    ("truncated", {"how": "preset", "name": "../vtw"}),
    ("truncated", {"how": "preset", "name": None}),
    ("truncated", {"how": "policy", "name": "p", "text": "[" * 100_000}),
    ("truncated", {"how": "policy", "name": "p", "text": "{}"}),
    ("truncated", {"how": "policy", "name": "/etc/passwd", "text": ""}),
    ("trust", {"signal": "nothing", "layer": 1, "target": 0}),
    ("trust", {"signal": "saliency", "layer": 99, "target": 0}),
    ("trust", {"signal": "saliency", "layer": None, "target": 0}),
    ("trust", {"signal": "saliency", "layer": 1, "target": 10**9}),
    ("trust", {"signal": ["saliency"], "layer": 1, "target": 0}),
]


@pytest.mark.parametrize(("path", "wanted"), WRONG_WORK, ids=lambda value: str(value)[:60])
def test_wrong_settings_are_one_sentence(app, answer, path, wanted):
    shown = app.work(f"/answers/{answer}/{path}", wanted)
    assert shown["status"] == "failed"
    assert shown["says"]
    assert "Traceback" not in shown["says"]
    assert "inside vlmflow" not in shown["says"], "a bug, not a sentence"
    assert len(shown["says"]) < 600


def test_two_people_at_once_never_get_each_others_answers(app):
    """Six questions about six pictures, all at the same time, and each gets its own numbers."""
    results = {}

    def ask(name):
        results[name] = app.ask(sample_picture(name)[1], name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in SAMPLE_NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({shown["answer"] for shown in results.values()}) == len(SAMPLE_NAMES)
    vlm = app.app.engine._vlm
    for name, shown in results.items():
        kept, question = sample_picture(name)
        summary = app.get(f"/answers/{shown['answer']}/summary").json
        assert summary["question"] == question
        assert summary["pictures"] == [name]
        assert summary["answer"] == shown["text"]
        assert summary["answer"] == vlm.generate(kept.image, question, max_new_tokens=16)


class StopHereError(Exception):
    pass


def test_work_stops_at_the_next_layer_forwards_and_backwards(vlm):
    """And the model is as it was: the same explanation comes out afterwards."""
    picture = sample_picture(SAMPLE)[0].image
    before = vlm.explain(picture, QUESTION)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    checks = 0

    def count():
        nonlocal checks
        checks += 1

    with interruptible(vlm.model, count):
        vlm.explain(picture, QUESTION)
    total = checks
    forward = len(vlm.decoder_layers)
    assert total > 3 * forward  # generating, forwards, and backwards
    for place in (1, forward // 2, total // 2, total - 1, total):
        checks = 0

        def stop(place=place):
            nonlocal checks
            checks += 1
            if checks == place:
                raise StopHereError

        with pytest.raises(StopHereError), interruptible(vlm.model, stop):
            vlm.explain(picture, QUESTION)
        assert checks == place
    after = vlm.explain(picture, QUESTION)
    for signal in before.signals:
        np.testing.assert_array_equal(before.maps[signal], after.maps[signal])
    left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    assert left == hooks


def test_gradients_are_checked_on_their_way_back(vlm):
    layers, checks = len(vlm.decoder_layers), []
    prompt = vlm.prepare(sample_picture(SAMPLE)[0].image, QUESTION)
    with interruptible(vlm.model, lambda: checks.append(torch.is_grad_enabled())):
        logits = vlm.model(**prompt.inputs).logits
        forwards = len(checks)
        logits.sum().backward()
    vlm.model.zero_grad(set_to_none=True)
    assert len(checks) - forwards >= layers


@pytest.mark.parametrize("path", ["truncated", "removal", "trust"])
def test_other_work_stops_within_one_pass_and_changes_nothing(app, vlm, answer, path):
    wanted = {
        "truncated": {"how": "settings", "layer": 2, "count": 3, "rank_by": "diversity"},
        "removal": {},
        "trust": {"signal": "attention", "layer": 6, "target": 0},
    }[path]
    kept = app.app.answers.get(answer)
    before = dict(vars(kept))
    began, go, layers = threading.Event(), threading.Event(), []

    def wait(_layer, _inputs):
        layers.append(1)
        began.set()
        assert go.wait(30)

    handle = vlm.decoder_layers[3].register_forward_pre_hook(wait)
    try:
        job = app.post(f"/answers/{answer}/{path}", wanted).json["job"]
        assert began.wait(30)
        assert app.post(f"/jobs/{job}/cancel").status == 200
        go.set()
        assert app.watch(job)["status"] == "cancelled"
    finally:
        go.set()
        handle.remove()
    assert len(layers) == 1  # not one pass more, and not even this one to its end
    assert vars(kept) == before


def png(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


NOISE = Image.effect_noise((300, 200), 90).convert("RGB")
WHOLE = png(NOISE)
BROKEN = {
    "nothing": b"",
    "text": b"not a picture",
    "page": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "cut": WHOLE[: len(WHOLE) // 2],
    "cut jpeg": png(NOISE, "JPEG")[:400],
    "flipped": WHOLE[:60] + bytes(byte ^ 0x55 for byte in WHOLE[60:160]) + WHOLE[160:],
    "one pixel": png(NOISE.resize((1, 1))),
    "a line": png(NOISE.resize((1200, 3))),
    "bomb": png(Image.new("1", (20_000, 20_000))),
    "too many pixels": png(Image.new("L", (1000, 301))),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "floats": png(NOISE.convert("F"), "TIFF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_huge_picture_is_one_sentence(app, name):
    answer = app.request("POST", "/pictures?name=the-file.png", BROKEN[name])
    assert answer.status == 400
    assert "the-file.png" in answer.json["error"]
    assert "Traceback" not in answer.text


def test_an_upload_is_what_is_asked_about(app, vlm):
    named = app.request("POST", "/pictures?name=x", WHOLE).json
    assert (named["width"], named["height"]) == (300, 200)
    shown = app.ask("What is it?", named["picture"], max_new_tokens=4)
    assert shown["text"] == vlm.generate(NOISE, "What is it?", max_new_tokens=4)
    copy = Image.open(io.BytesIO(app.get(f"/pictures/{named['picture']}").body))
    assert ImageChops.difference(copy.convert("RGB"), NOISE).getbbox() is None
    upright = app.request("POST", "/pictures", png(NOISE, "JPEG", exif=turned())).json
    assert (upright["width"], upright["height"]) == (200, 300)


def test_several_pictures_are_asked_about_in_their_order(app, vlm):
    names = SAMPLE_NAMES[2], SAMPLE_NAMES[0]
    shown = app.ask("What is in the second picture?", *names, max_new_tokens=6)
    images = [sample_picture(name)[0].image for name in names]
    question = "What is in the second picture?"
    assert shown["text"] == vlm.generate(images, question, max_new_tokens=6)
    flow = app.app.answers.get(shown["answer"]).flow
    assert [tuple(size) for size in flow.layout.image_sizes] == [image.size for image in images]
    assert app.work(f"/answers/{shown['answer']}/removal")["status"] == "done"


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"question": "", "pictures": [SAMPLE]},
        {"question": " \n", "pictures": [SAMPLE]},
        {"question": 7, "pictures": [SAMPLE]},
        {"question": "a" * 4001, "pictures": [SAMPLE]},
        {"question": "?", "pictures": []},
        {"question": "?", "pictures": [SAMPLE] * 5},
        {"question": "?", "pictures": SAMPLE},
        {"question": "?", "pictures": [None]},
        {"question": "?", "pictures": [SAMPLE], "max_new_tokens": 0},
        {"question": "?", "pictures": [SAMPLE], "max_new_tokens": 10**9},
        {"question": "?", "pictures": [SAMPLE], "max_new_tokens": True},
        {"question": "?", "pictures": [SAMPLE], "max_new_tokens": "64"},
    ],
    ids=lambda body: str(body)[:60],
)
def test_a_wrong_question_is_one_sentence(app, body):
    answer = app.post("/answers", body)
    assert answer.status == 400
    assert set(answer.json) == {"error"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"1e999"]
)
def test_what_is_not_a_json_object_is_one_sentence(app, body):
    answer = app.request("POST", "/answers", body, Content_Type="application/json")
    assert answer.status == 400
    assert set(answer.json) == {"error"}
    assert app.request("POST", "/answers", b"{}", Content_Type="text/plain").status == 415


def test_gone_names_are_not_found(app, answer):
    gone = answer[:-1] + ("y" if answer.endswith("x") else "x")
    for path in ("summary", "page", "report.html", "numbers.zip"):
        assert app.get(f"/answers/{answer}/{path}").status == 200
        assert app.get(f"/answers/{gone}/{path}").status == 404
    assert app.post(f"/answers/{gone}/removal").status == 404
    assert app.get("/jobs/none").status == 404
    assert app.ask("?", "no-such-picture")["status"] == "refused"


def test_rankings_that_cannot_be_named_are_not_offered():
    twins = [
        type("Twin", (vlmflow.Ranking,), {"__module__": f"cell_{number}", "version": "1"})
        for number in range(2)
    ]
    vlm = vlmflow.LVLM(*tiny_llava(3, layers=3), name="tiny")
    names = {ranking["name"] for ranking in offers(vlm)["rankings"]}
    assert len(twins) == 2
    assert "twin" not in names
    assert {"uniform", "diversity"} <= names
    assert "saliency" not in names
