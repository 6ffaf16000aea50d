"""A cliff study measures what it says, predicts fairly, and shows it on a page."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.browser import OpenPage, running_browser
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, cli, cliff_study
from vlmflow.cli import terminal
from vlmflow.errors import InputError
from vlmflow.removal.curve import RemovalCurve, removal_curve
from vlmflow.reports.cliff.page import cliff_page, headline
from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.statistics.rank_correlation import spearman
from vlmflow.studies.cliff_layer import measurements, measuring
from vlmflow.studies.cliff_layer.measurements import SIGNALS, SampleMeasurement
from vlmflow.studies.cliff_layer.prediction import predicted_cliff, predictions, true_cliffs
from vlmflow.studies.cliff_layer.run import run_cliff_study
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.folder import FolderTask
from vlmflow.truncation.amounts import Count

HOSTILE = "<script>ranPayload++</script><img src=x onerror=ranPayload++>\u202e"


@pytest.fixture(scope="module")
def vlm():
    model, processor = tiny_llava(7, layers=4)
    # A model that always says the same would have its cliff everywhere at 0.
    model.generation_config.max_new_tokens = 4
    return LVLM(model, processor, name="tiny " + HOSTILE)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Twelve questions about noise, six of them for calibration."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number in range(12):
        Image.effect_noise((60 + number, 50), 90).convert("RGB").save(folder / f"{number}.png")
        text = "What colour is the circle?" if number % 2 else f"Is there a star? {HOSTILE}"
        line = {"image": f"{number}.png", "question": text, "answer": "red", "group": "noise"}
        lines.append({**line, "split": "calibration"} if number < 6 else line)
    path = folder / "noise.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def study(vlm, questions):
    task = FolderTask(questions)
    task.max_new_tokens = 4
    return cliff_study(vlm, task, samples=6, calibration=6, batch=4, draws=50)


def test_batches_are_answered_like_single_prompts(vlm, questions):
    samples = list(FolderTask(questions).samples("test"))
    prompts = [vlm.prepare(sample.pictures, sample.question) for sample in samples]
    together = vlm.generate_batch(prompts, max_new_tokens=4)
    assert together == [vlm.generate_ids(prompt, max_new_tokens=4) for prompt in prompts]


def test_what_is_measured_is_what_single_calls_measure(vlm, study):
    for measurement in study.measurements:
        (picture,) = measurement.sample.pictures
        curve = removal_curve(vlm, picture, measurement.sample.question, max_new_tokens=4)
        np.testing.assert_allclose(measurement.curve.kl, curve.kl, rtol=1e-3, atol=1e-5)
        flow = vlm.explain(
            picture, measurement.sample.question, max_new_tokens=4, signals=["saliency"]
        )
        segment = ("system", "image", "user", "answer").index("image")
        share = flow.attention_share[:, 0, segment]
        np.testing.assert_allclose(measurement.signals["attention share"], share, rtol=1e-3)
        poured = flow.saliency_sum[:, 0, :, segment].sum(1)
        np.testing.assert_allclose(
            measurement.signals["saliency flow"], poured / poured.sum(), rtol=1e-2, atol=1e-4
        )
        strongest = np.sort(flow.maps["saliency"][:, 0], axis=1)[:, -2:].sum(1)
        expected = strongest / flow.maps["saliency"][:, 0].sum(1)
        np.testing.assert_allclose(measurement.signals["convergence"], expected, rtol=1e-2)


def test_progress_counts_samples(vlm, questions):
    done = []
    cliff_study(
        vlm, FolderTask(questions), samples=5, calibration=3, batch=2, draws=10,
        progress=lambda *now: done.append(now),
    )  # fmt: skip
    assert done == [(2, 8), (3, 8), (5, 8), (7, 8), (8, 8)]


def test_the_tables_hold_every_layer_and_sample(study):
    layers, samples = study.layer_frame(), study.sample_frame()
    assert layers["layer"].tolist() == [0, 1, 2, 3]
    kl = np.stack([curve.mean_kl for curve in study.curves])
    np.testing.assert_allclose(layers["kl"], kl.mean(0), rtol=1e-6)
    changed = np.mean([~curve.same_answer for curve in study.curves], axis=0)
    np.testing.assert_allclose(layers["changed"], changed)
    # Wilson's interval has a width even where all or no answers change.
    assert (layers["changed high"] - layers["changed low"] > 0.3).all()
    assert (layers["kl low"] <= layers["kl"]).all()
    assert (layers["kl"] <= layers["kl high"]).all()
    assert samples["cliff"].tolist() == true_cliffs(study.measurements, 0.1).tolist()
    assert samples["group"].tolist() == ["noise"] * 6
    plain = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert [row["layer"] for row in plain["layers"]] == [0, 1, 2, 3]
    assert {prediction["signal"] for prediction in plain["predictions"]} == {"constant", *SIGNALS}


def with_cliff(cliff, layers=6, **signals):
    """A sample whose curve has its cliff at a layer."""
    kl = np.array([[1.0 if layer < cliff else 0.0] for layer in range(layers)], dtype=np.float32)
    curve = RemovalCurve(
        tuple(range(layers)), ("yes",), kl, kl == 0, np.ones(layers, dtype=bool), -kl,
        np.zeros(1, dtype=np.float32), Count(0), None,
    )  # fmt: skip
    sample = TaskSample("1", (), "?", ("yes",))
    flat = {name: np.ones(layers) for name in SIGNALS}
    return SampleMeasurement(sample, "yes", 1.0, curve, {**flat, **signals})


def with_signal(cliff, layers=6):
    """Saliency that ends exactly at the cliff; attention that says nothing."""
    flow = np.array([1.0 if layer < cliff else 0.0 for layer in range(layers)])
    peak = np.zeros(layers)
    peak[cliff - 1] = 1.0
    return with_cliff(cliff, layers, **{"saliency flow": flow, "convergence": peak})


def test_a_signal_that_knows_is_told_from_one_that_does_not():
    draw = random.Random(1)
    calibration = [with_signal(draw.choice([2, 3, 5])) for _ in range(30)]
    test = [with_signal(draw.choice([2, 3, 5])) for _ in range(60)]
    results = {
        prediction.signal: prediction
        for prediction in predictions(calibration, test, 0.1, draws=100)
    }
    assert results["saliency flow"].error == 0
    assert results["saliency flow"].rank == pytest.approx(1)
    assert results["convergence"].error == 0
    assert results["constant"].rank is None
    assert results["attention share"].rank is None
    assert results["attention share"].error >= results["saliency flow"].error_high
    constant = results["constant"]
    assert constant.error_low <= constant.error <= constant.error_high
    assert constant.samples == 60


@pytest.mark.parametrize(
    ("signal", "values", "threshold", "layer"),
    [
        ("saliency flow", [5, 3, 1, 1], 0.25, 2),
        ("saliency flow", [5, 3, 1, 1], 0.2, 2),
        ("saliency flow", [5, 3, 1, 1], 0.0, 4),
        ("attention share", [5, 3, 1, 1], 1.0, 0),
        ("convergence", [0.1, 0.7, 0.2, 0.3], 0.0, 2),
    ],
)
def test_what_a_signal_predicts(signal, values, threshold, layer):
    assert predicted_cliff(signal, np.array(values, dtype=np.float64), threshold) == layer


def test_rank_correlation_by_counting():
    """Against ranks counted pair by pair, ties included."""
    draw = random.Random(3)
    for _ in range(50):
        a = [draw.choice([1, 2, 3, 4]) for _ in range(9)]
        b = [draw.choice([1, 2, 3]) for _ in range(9)]
        ranks = [
            [sum(y < x for y in values) + (sum(y == x for y in values) + 1) / 2 for x in values]
            for values in (a, b)
        ]
        if len(set(a)) == 1 or len(set(b)) == 1:
            assert spearman(a, b) is None
            continue
        mean = 5.0
        top = sum((x - mean) * (y - mean) for x, y in zip(*ranks, strict=True))
        below = [sum((x - mean) ** 2 for x in values) for values in ranks]
        assert spearman(a, b) == pytest.approx(top / (below[0] * below[1]) ** 0.5)


def test_bootstrap_intervals_cover_the_mean():
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(200):
        values = rng.exponential(1.0, size=(60, 1))
        low, high = mean_interval(values, None, 200, trial)
        covered.append(bool(low[0] <= 1.0 <= high[0]))
    # A percentile bootstrap of 60 skewed values covers a little less than 95 %.
    assert 0.88 <= np.mean(covered) <= 0.99


def test_no_answer_at_all_is_said(vlm):
    silent = [SampleMeasurement(TaskSample("1", (), "?", ("yes",)), "", 0.0)]
    with pytest.raises(InputError, match="no answer to any sample"):
        predictions(silent, silent, 0.1)


@pytest.mark.parametrize("name", ["samples", "calibration", "batch"])
def test_settings_that_measure_nothing_are_refused(vlm, questions, name):
    with pytest.raises(InputError, match=f"{name}=0"):
        cliff_study(vlm, FolderTask(questions), **{name: 0})


def test_a_study_shows_itself_in_a_notebook(study):
    html = study._repr_html_()
    assert headline(study) in unescape(html)
    assert html.count("<tr") == 1 + len(study.layers)
    hostile = replace(study, task="<script>x</script>", model={"name": "<img src=x>\u202e"})
    assert "<script" not in hostile._repr_html_()
    assert "<img" not in hostile._repr_html_()
    assert "⟦U+202E⟧" in hostile._repr_html_()
    assert "\u202e" not in cliff_page(hostile)


def test_pages_and_figures_are_written_by_one_call(study, tmp_path):
    page = vlmflow.report(study, tmp_path / "page.html")
    assert page.read_text("utf-8") == cliff_page(study)
    files = vlmflow.figures(study, tmp_path / "figures")
    assert [path.name for path in files] == ["cliff.png", "cliff.pdf"]


def test_the_page_shows_the_study_and_runs_nothing(study, tmp_path):
    path = tmp_path / "cliff.html"
    path.write_text(cliff_page(study), "utf-8")
    with running_browser() as browser:
        opened = OpenPage(browser, path)
        page = opened.page
        assert page.inner_text("h1") == headline(study)
        assert page.locator("tr", has_text="layer 3").count() == 1
        assert page.locator("tr", has_text="What colour is the circle?").count() == 3
        assert page.locator("figure svg:visible").count() == 1
        assert page.evaluate("window.ranPayload") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []


def test_the_command_writes_everything(questions, tmp_path):
    for part in tiny_llava(7, layers=4):
        part.save_pretrained(tmp_path / "model")
    arguments = ["cliff", questions, "--model", tmp_path / "model", "--out", tmp_path / "out"]
    arguments += ["--samples", 4, "--calibration", 3]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "removed from   answers changed" in result.stdout
    assert "layer 3" in result.stdout
    assert "saliency flow" in result.stdout
    names = {"cliff.html", "cliff.json", "cliff.pdf", "cliff.png", "layers.csv", "samples.csv"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*names, "cliff.sqlite", "cliff.lock"}
    assert json.loads((tmp_path / "out" / "cliff.json").read_text())["samples"] == 4


@pytest.fixture
def with_failures(questions, tmp_path):
    """The questions, with a calibration and a test picture that cannot be opened."""
    for path in questions.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for number in (2, 7):
        (tmp_path / f"{number}.png").write_bytes(b"no picture " + HOSTILE.encode())
    lines = [json.loads(line) for line in (tmp_path / questions.name).read_text().splitlines()]
    lines[7]["key"] = "seven " + HOSTILE
    (tmp_path / questions.name).write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / questions.name


def test_a_sample_that_fails_is_named_counted_and_left_out(vlm, with_failures, tmp_path):
    task = FolderTask(with_failures)
    task.max_new_tokens = 4
    study = cliff_study(vlm, task, samples=6, calibration=6, batch=4, draws=50)
    named = [(failure.split, failure.key) for failure in study.failures]
    assert named == [("calibration", "3"), ("test", "seven " + HOSTILE)]
    assert "2.png" in study.failures[0].reason
    assert "7.png" in study.failures[1].reason
    assert len(study.measurements) == 6
    assert len(study.curves) == 5
    # Those it was to be measured with are measured as they are without it.
    kept = [item for item in study.measurements if item.failure is None]
    for item in kept:
        curve = removal_curve(vlm, item.sample.pictures, item.sample.question, max_new_tokens=4)
        np.testing.assert_allclose(item.curve.kl, curve.kl, rtol=1e-3, atol=1e-5)
    assert study.score == np.mean([item.score for item in kept])
    samples = study.sample_frame()
    assert samples["failure"].notna().tolist() == [False, True, False, False, False, False]
    assert samples["cliff"].isna().tolist() == samples["failure"].notna().tolist()
    assert samples["answer"].isna().tolist() == samples["failure"].notna().tolist()
    plain = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert [failure["key"] for failure in plain["failures"]] == ["3", "seven " + HOSTILE]
    assert (plain["samples"], plain["without_answer"]) == (6, 0)
    assert "2 samples failed and are left out" in study._repr_html_()
    path = tmp_path / "cliff.html"
    path.write_text(cliff_page(study), "utf-8")
    with running_browser() as browser:
        opened = OpenPage(browser, path)
        page = opened.page
        assert page.evaluate("window.ranPayload") == 0
        assert "2 samples failed (1 of calibration, 1 of test)" in page.inner_text("main")
        rows = page.locator("[aria-label='Failures by sample'] tbody tr")
        assert rows.count() == 2
        assert "2.png" in rows.nth(0).inner_text()
        assert "seven" in rows.nth(1).inner_text()
        assert opened.complaints == []


def test_where_every_sample_fails_the_first_is_named(vlm, questions, tmp_path):
    for path in questions.parent.iterdir():
        content = path.read_bytes() if path.suffix == ".jsonl" else b"no picture"
        (tmp_path / path.name).write_bytes(content)
    task = FolderTask(tmp_path / questions.name)
    with pytest.raises(InputError, match=r"no calibration sample of noise .* first, 1: .*0\.png"):
        cliff_study(vlm, task, samples=2, calibration=2)


def test_a_batch_that_fails_is_measured_one_by_one(vlm, questions, monkeypatch):
    """As where memory is enough for one sample and not for all."""
    curves = measurements.removal_curves

    def small(model, prompts):
        if len(prompts) > 1 or "star" in "".join(prompts[0].layout.tokens):
            raise RuntimeError("out of memory")
        return curves(model, prompts)

    task = FolderTask(questions)
    task.max_new_tokens = 4
    settings = CliffSettings(samples=6, calibration=3, batch=4, draws=10)
    expected = run_cliff_study(vlm, task, settings)
    monkeypatch.setattr(measurements, "removal_curves", small)
    alone = run_cliff_study(vlm, task, settings)
    for item, other in zip(alone.measurements, expected.measurements, strict=True):
        assert item.sample.key == other.sample.key
        if "star" in item.sample.question:
            assert item.failure == "RuntimeError: out of memory"
        else:
            assert item.answer == other.answer
            np.testing.assert_allclose(item.curve.kl, other.curve.kl, rtol=1e-3, atol=1e-5)


def test_an_interrupted_command_goes_on_and_reports(with_failures, tmp_path, monkeypatch):
    for part in tiny_llava(7, layers=4):
        part.save_pretrained(tmp_path / "model")
    arguments = ["cliff", with_failures, "--model", tmp_path / "model", "--samples", 5]
    arguments += ["--calibration", 3, "--batch", 2, "--device", "cpu", "--out"]
    measure, measured = measuring.measure_samples, []

    def interrupted(model, samples, length, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append([item.sample.key for item in samples])
        return measure(model, samples, length, **options)

    monkeypatch.setattr(measuring, "measure_samples", interrupted)

    def command(*given):
        return CliRunner().invoke(cli.app, [str(argument) for argument in given])

    result = command(*arguments, tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command continues from here" in result.stderr
    refused = command("report", tmp_path / "out")
    assert refused.exit_code == 2
    assert "is not finished; run the same 'vlmflow cliff' again" in refused.stderr
    measured.clear()
    monkeypatch.setattr(
        measuring,
        "measure_samples",
        lambda *given, **options: measured.append(given) or measure(*given, **options),
    )
    monkeypatch.setattr(terminal, "FIRST_LINE", 0)
    result = command(*arguments, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"Measuring {with_failures}: 1 of 8 samples" in result.stderr
    assert "2 samples failed (1 of calibration, 1 of test)" in result.stdout
    assert len(measured) == 1  # of three batches; the first two are there
    assert command(*arguments, tmp_path / "whole").exit_code == 0
    again = command("report", tmp_path / "out", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert again.stdout.split("written to")[0] == result.stdout.split("\nwritten to")[0] + "\n"
    expected_json = (tmp_path / "whole" / "cliff.json").read_bytes()
    for name in ("cliff.json", "layers.csv", "samples.csv", "cliff.html"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected
        assert (tmp_path / "again" / name).read_bytes() == expected
    with closing(sqlite3.connect(tmp_path / "out" / "cliff.sqlite")) as base:
        base.execute("DROP TABLE sample")
    damaged = command("report", tmp_path / "out")
    assert damaged.exit_code == 2
    (line,) = damaged.stderr.splitlines()
    assert "is damaged (table 'sample' is missing)" in line
    mended = command(*arguments, tmp_path / "out")
    assert mended.exit_code == 0, mended.output
    (note,) = (line for line in mended.stderr.splitlines() if line.startswith("note: "))
    assert "was damaged (table 'sample' is missing)" in note
    assert (tmp_path / "out" / "cliff.json").read_bytes() == expected_json


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes-juggling"], "unknown task 'scenes-juggling'"),
        (["scenes-reading", "--samples", "0"], "--samples 0 is out of range"),
        (["scenes-reading", "--changed", "-1"], "--changed -1"),
        (["missing.csv"], "task file 'missing.csv' cannot be read"),
    ],
)
def test_the_command_refuses_bad_input_and_writes_nothing(tmp_path, arguments, message):
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.app, ["cliff", *arguments, "--out", str(out)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_answers_that_are_scored_together_are(vlm, questions):
    """As CIDEr: the score of one answer depends on all of them, and alone it has none."""

    class Together(FolderTask):
        by_itself = False
        max_new_tokens = 4

        def score(self, sample, answer):
            raise AssertionError("alone it has no score")

        def scores(self, samples, answers):
            return [1 / len(answers)] * len(answers)

    result = cliff_study(vlm, Together(questions), samples=6, calibration=3, batch=4, draws=20)
    assert [measurement.score for measurement in result.measurements] == [1 / 6] * 6


def test_questions_about_one_picture_are_drawn_together(tmp_path):
    """Every question stands three times in the file: that is no evidence of three."""
    vlm = LVLM(*tiny_llava(3, layers=3), name="tiny")
    vlm.model.generation_config.suppress_tokens = list(vlm.image_token_ids)
    lines = []
    for number in range(15):
        noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        line = {"image": f"{number}.png", "question": "Is it?", "answer": "yes"}
        split = "calibration" if number % 3 == 2 else "test"
        lines.append({**line, "split": split})
    results = []
    for copies in (1, 3):
        path = tmp_path / f"{copies}.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines for _ in range(copies)))
        settings = CliffSettings(samples=10 * copies, calibration=5 * copies)
        results.append(run_cliff_study(vlm, FolderTask(path), settings))
    single, tripled = results
    assert len(tripled.curves) == 3 * len(single.curves)
    ends = ["kl low", "kl high", "saliency flow low", "saliency flow high"]
    np.testing.assert_allclose(tripled.layer_frame()[ends], single.layer_frame()[ends], rtol=1e-4)
    assert (tripled.kl.low, tripled.kl.high) == (single.kl.low, single.kl.high)
    for one_copy, three in zip(single.predictions, tripled.predictions, strict=True):
        assert three.error_low == pytest.approx(one_copy.error_low, abs=1e-6)
        assert three.error_high == pytest.approx(one_copy.error_high, abs=1e-6)
