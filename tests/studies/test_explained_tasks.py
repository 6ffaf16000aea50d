"""A task's answers explained into a folder: reports, a list, and going on where it was."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.browser import OpenPage, running_browser
from tests.support.tiny import tiny_llava
from vlmflow import cli
from vlmflow.errors import InputError
from vlmflow.studies.explanations import explaining

OPTIONS = vlmflow.ExplainOptions(signals=["saliency"], per_token=False, max_new_tokens=3)


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.LVLM(*tiny_llava(3, layers=3), name="tiny <b>")


class Mixed(vlmflow.Task):
    """Four samples: right, half right, broken, and one with a hostile question."""

    name = "mixed <i>"
    metric = "share"

    def __init__(self, folder):
        self.folder = folder
        self.lost = ("two",)

    def samples(self, split, count=None):
        for index, key in enumerate(("zero", "one", "two", "../three <script>")[:count]):
            noise = np.random.default_rng(10 + index).integers(0, 256, (40, 50, 3), np.uint8)
            picture = Image.fromarray(noise)
            if key in self.lost:
                picture = self.folder / "broken.png"
                picture.write_bytes(b"not a picture")
            question = "</script><script>alert(1)</script>" if index == 3 else f"What is {key}?"
            yield vlmflow.TaskSample(key, (picture,), question, ("red",))

    def score(self, sample, answer):
        return {"zero": 1.0, "one": 0.5}.get(sample.key, 0.25)


def explain_all(vlm, task, out, **options):
    return vlmflow.explain_task(vlm, task, out=out, samples=4, options=OPTIONS, **options)


@pytest.fixture(scope="module")
def explained(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return explain_all(vlm, Mixed(folder), folder / "out"), folder


def test_each_answer_is_explained_as_on_its_own(vlm, explained):
    result, folder = explained
    assert [answer.failure is None for answer in result.answers] == [True, True, False, True]
    for sample, answer in zip(Mixed(folder).samples("test"), result.answers, strict=True):
        if answer.failure is not None:
            assert "broken.png" in answer.failure
            continue
        stored = vlmflow.InformationFlow.load(folder / "out" / answer.folder)
        alone = vlm.explain(
            sample.pictures, sample.question,
            signals=OPTIONS.signals, per_token=False, max_new_tokens=3,
        )  # fmt: skip
        assert stored.answer == alone.answer == answer.answer
        # float32, measured together with others: some roundings of the largest value.
        expected = alone.maps["saliency"]
        np.testing.assert_allclose(
            stored.maps["saliency"], expected, rtol=0, atol=1e-5 * expected.max()
        )
        assert (folder / "out" / answer.folder / "report.html").is_file()


def test_failed_and_wrong_answers_come_first(explained):
    result, folder = explained
    table = pd.read_csv(folder / "out" / "answers.csv")
    assert table["key"].tolist() == ["two", "../three <script>", "one", "zero"]
    assert table["score"].tolist()[1:] == [0.25, 0.5, 1.0]
    folders = {path.name for path in (folder / "out").iterdir()}
    assert folders == {
        *("index.html", "answers.csv", "0000-zero", "0001-one"),
        "0003-..-three-script-",
    }
    assert "two" in result._repr_html_()


def test_it_goes_on_where_it_was(vlm, explained, monkeypatch):
    result, folder = explained
    task = Mixed(folder)
    measured = []
    real = explaining.Preparer.prepare

    def noting(preparer, sample):
        measured.append(sample.question)
        return real(preparer, sample)

    monkeypatch.setattr(explaining.Preparer, "prepare", noting)
    again = explain_all(vlm, task, folder / "out")
    assert measured == ["What is two?"]  # what failed is tried again
    measured.clear()
    pd.testing.assert_frame_equal(again.frame(), result.frame())
    task.lost = ()  # the picture has been put right
    assert not explain_all(vlm, task, folder / "out").failures
    assert measured == ["What is two?"]
    measured.clear()
    other = dataclasses.replace(OPTIONS, max_new_tokens=2)
    vlmflow.explain_task(vlm, task, out=folder / "out", samples=1, options=other)
    assert measured == ["What is zero?"]
    task.lost = ("zero", "one", "two", "../three <script>")
    with pytest.raises(InputError, match="no sample of mixed <i> could be explained; the first"):
        explain_all(vlm, task, folder / "lost")
    assert not (folder / "lost" / "index.html").exists()


def test_a_full_disk_is_no_fault_of_the_sample(vlm, tmp_path, monkeypatch):
    def write(*_):
        raise InputError("output directory cannot be written (No space left on device)")

    monkeypatch.setattr("vlmflow.reports.answers.directory._write", write)
    with pytest.raises(InputError, match="No space left"):
        explain_all(vlm, Mixed(tmp_path), tmp_path / "out")


def test_the_list_sorts_links_and_escapes(vlm, tmp_path):
    explain_all(vlm, Mixed(tmp_path), tmp_path / "out")
    with running_browser() as browser:
        opened = OpenPage(browser, tmp_path / "out" / "index.html")
        page = opened.page
        cells = "[...document.querySelectorAll('#answers tbody tr')].map(r => r.cells[6].innerText)"
        assert page.evaluate(cells) == ["two", "../three <script>", "one", "zero"]
        page.get_by_role("button", name="sample").click()
        assert page.evaluate(cells) == ["zero", "one", "two", "../three <script>"]
        page.get_by_role("button", name="score").click()
        page.get_by_role("button", name="score").click()
        assert page.evaluate(cells) == ["zero", "one", "../three <script>", "two"]
        page.get_by_role("link", name="What is one?").click()
        page.wait_for_selector("body[data-ready]")
        assert page.url.endswith("/0001-one/report.html")
        assert opened.complaints == []


def test_from_the_command_line(tmp_path, monkeypatch):
    for part in tiny_llava(3, layers=3):
        part.save_pretrained(tmp_path / "model")
    lines = []
    for number in range(2):
        Image.new("RGB", (40, 40), (90 * number, 20, 80)).save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": f"What is {number}?", "answer": "red"})
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    short = ("--signals", "saliency", "--whole", "--max-new-tokens", "3")

    def run(*arguments):
        command = ["explain", *map(str, arguments), "--model", str(tmp_path / "model"), *short]
        return CliRunner().invoke(cli.app, command)

    result = run(questions, "--samples", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 answers, ")
    assert (out / "index.html").is_file()
    facts = json.loads(run(questions, "--samples", 1, "--out", out, "--json").stdout)
    assert facts["samples"] == 1
    assert facts["page"] == str(out / "index.html")
    for arguments, phrase in {
        (questions, "--answer", "red"): "--answer is for one picture and its question",
        (questions, "--figures"): "--figures is for one picture and its question",
        (tmp_path / "0.png", "What?", "--samples", 3): "--samples is for a task",
        (tmp_path / "0.png",): "a picture needs its question: IMAGE QUESTION",
        (questions, "--samples", 0): "--samples 0 is out of range",
    }.items():
        refused = run(*arguments, "--out", tmp_path / "none")
        assert refused.exit_code == 2, refused.output
        assert phrase in refused.stderr
        assert not (tmp_path / "none").exists()


def test_maps_are_tested_and_answers_truncated_as_on_their_own(vlm, tmp_path):
    truncation = vlmflow.Truncation(layer=1, keep=0)
    result = explain_all(vlm, Mixed(tmp_path), tmp_path / "out", trust=True, truncation=truncation)
    sample = next(Mixed(tmp_path).samples("test"))
    alone = vlm.explain(
        sample.pictures, sample.question, signals=OPTIONS.signals, per_token=False,
        max_new_tokens=3, trust=True, truncation=truncation,
    )  # fmt: skip
    first = result.answers[0]
    assert first.trust == str(alone.trust[0])
    assert first.truncated == alone.truncated.answer
    stored = vlmflow.InformationFlow.load(tmp_path / "out" / first.folder)
    assert stored.truncated.answer == first.truncated
    assert len(stored.trust) == 1
    table = result.frame()
    assert table.set_index("key").loc["one", "truncated_score"] == 0.5
    page = (tmp_path / "out" / "index.html").read_text()
    assert "tokens removed:" in page
    changed = sum(answer.truncated != answer.answer for answer in result.answers)
    assert f"With image tokens removed {changed} of 3 answers change" in page
    assert "ranks regions" in page
    # Without both nothing speaks of them, and answers that were explained without are new ones.
    plain = explain_all(vlm, Mixed(tmp_path), tmp_path / "plain")
    assert "trust" not in plain.frame()
    assert "tokens removed" not in (tmp_path / "plain" / "index.html").read_text()


def test_a_truncation_that_does_not_fit_is_refused_before_anything_runs(vlm, tmp_path):
    with pytest.raises(InputError, match="layer=9"):
        explain_all(
            vlm, Mixed(tmp_path), tmp_path / "out", truncation=vlmflow.Truncation(layer=9, keep=0)
        )
    assert not (tmp_path / "out" / "0000-zero").exists()
