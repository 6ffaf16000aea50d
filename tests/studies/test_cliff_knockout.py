"""Attention knockouts in a cliff study: measured, stored, put into figures and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.browser import OpenPage, running_browser
from tests.support.families import FAMILIES
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, cli, cliff_study
from vlmflow.errors import ModelError
from vlmflow.removal.answer_curve import AnswerCurve
from vlmflow.removal.curve import RemovalCurve
from vlmflow.removal.knockout import Knockout
from vlmflow.reports.cliff.page import cliff_page
from vlmflow.studies.cliff_layer import measuring
from vlmflow.studies.cliff_layer.knockout import knockout_figures
from vlmflow.studies.cliff_layer.run import read_cliff_study, run_cliff_study
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.studies.cliff_layer.store import CLIFF
from vlmflow.studies.store import Store
from vlmflow.tasks.folder import FolderTask
from vlmflow.truncation.amounts import Count

SIZES = {"samples": 5, "calibration": 3, "batch": 2, "draws": 40}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Nine questions about noise, three of them for calibration."""
    folder = tmp_path_factory.mktemp("noise")
    lines = []
    for number in range(9):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        split = "calibration" if number < 3 else "test"
        line = {"image": f"{number}.png", "question": "What is it?", "answer": "red"}
        lines.append({**line, "split": split})
    path = folder / "noise.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    task = FolderTask(path)
    task.max_new_tokens = 3
    return task


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*tiny_llava(7, layers=4), name="tiny")


@pytest.fixture(scope="module")
def study(vlm, task):
    return cliff_study(vlm, task, **SIZES, knockout=True)


def test_every_test_sample_has_the_knockout_of_a_single_call(vlm, study):
    assert len(study.knockouts) == len(study.curves) == 5
    for measurement in study.measurements:
        alone = vlm.attention_knockout(
            measurement.sample.pictures, measurement.sample.question, max_new_tokens=3
        )
        for part in ("onwards", "single"):
            own, expected = getattr(measurement.knockout, part), getattr(alone, part)
            np.testing.assert_allclose(own.kl, expected.kl, rtol=1e-3, atol=1e-5)
            np.testing.assert_array_equal(own.same_answer, expected.same_answer)


def test_the_table_has_both_curves_with_intervals(study):
    frame = study.layer_frame()
    for prefix, part in (("knockout ", "onwards"), ("knockout at ", "single")):
        curves = [getattr(knockout, part) for knockout in study.knockouts]
        kl = [[float(value) for value in curve.mean_kl] for curve in curves]
        changed = [[not same for same in curve.same_answer] for curve in curves]
        for layer in range(4):
            row = frame.loc[layer]
            assert row[f"{prefix}kl"] == pytest.approx(sum(own[layer] for own in kl) / 5)
            assert row[f"{prefix}changed"] == sum(own[layer] for own in changed) / 5
            for loss in ("kl", "changed"):
                assert row[f"{prefix}{loss} low"] <= row[f"{prefix}{loss}"]
                assert row[f"{prefix}{loss}"] <= row[f"{prefix}{loss} high"]
    # In the last layer alone and from it on are the same.
    last = frame.iloc[-1]
    assert last["knockout kl"] == pytest.approx(last["knockout at kl"], rel=1e-4)


def curve_of(changed, kind=AnswerCurve, **more):
    """A curve of an answer of one token that changes at these layers."""
    agrees = np.array([[not each] for each in changed])
    kl = np.where(agrees, 0, 1).astype(np.float32)
    layers = tuple(range(len(changed)))
    ends = np.ones(len(changed), bool)
    return kind(layers, ("yes",), kl, agrees, ends, -kl, np.zeros(1, np.float32), **more)


def test_the_figures_of_a_worked_example():
    """Of 40 answers 30 need the picture, 10 of them by a look of their own, 20 at layer 1."""
    removal = {"kind": RemovalCurve, "keep": Count(0), "ranking": None}
    curves, knockouts = [], []
    for number in range(40):
        curves.append(curve_of([number < 30, number < 30, False], **removal))
        onwards = curve_of([number < 10, number < 10, False])
        knockouts.append(Knockout(onwards, curve_of([number < 4, number < 20, False])))
    figures = knockout_figures(curves, knockouts, [""] * 40, draws=200, seed=0)
    assert (figures.removed.value, figures.cut_off.value) == (0.75, 0.25)
    assert figures.difference.value == 0.5
    # Paired: 20 differences of 1 and 20 of 0, a standard error of 0.08; Wilson's for 30 of 40.
    assert 0.30 < figures.difference.low < 0.38
    assert figures.removed.low == pytest.approx(0.598, abs=0.001)
    assert (figures.layer, figures.at_layer.value) == (1, 0.5)
    assert str(figures).startswith("Without the picture 75.0 % (59.8 to 85.8) of the answers")
    assert "the difference, 50.0 points (" in str(figures)
    assert "a cut at layer 1 changes most: 50.0 % (" in str(figures)
    same = [replace(knockout, onwards=curve_of([False] * 3)) for knockout in knockouts]
    nothing = [curve_of([False] * 3, **removal)] * 40
    shown = str(knockout_figures(nothing, same, [""] * 40, draws=200, seed=0))
    assert "by way of the words between is not shown" in shown


def test_a_store_without_knockouts_gets_them_and_keeps_them(vlm, task, tmp_path, monkeypatch):
    measure, measured = measuring.measure_samples, []

    def counted(model, samples, length, **options):
        measured.append((len(samples), options["knockout"]))
        return measure(model, samples, length, **options)

    monkeypatch.setattr(measuring, "measure_samples", counted)
    plain, wanted = CliffSettings(**SIZES), CliffSettings(**SIZES, knockout=True)
    before = run_cliff_study(vlm, task, plain, tmp_path)
    assert "Does the answer look for itself?" not in cliff_page(before)
    assert before.knockouts == []
    assert before.knockout_figures() is None
    # A store that was written before there were knockouts.
    store = Store(tmp_path, CLIFF, write=True)
    record = store.record()
    del record["settings"]["knockout"]
    store.write("study", record)
    store.close()
    assert read_cliff_study(tmp_path, task).to_json() == before.to_json()
    measured.clear()
    with_them = run_cliff_study(vlm, task, wanted, tmp_path)
    assert measured == [(2, True), (2, True), (1, True)]  # the test split's batches alone
    read = read_cliff_study(tmp_path, task)
    assert read.to_json() == with_them.to_json()
    for own, again in zip(with_them.knockouts, read.knockouts, strict=True):
        for part in ("onwards", "single"):
            for name, value in vars(getattr(own, part)).items():
                np.testing.assert_array_equal(value, getattr(getattr(again, part), name))
    measured.clear()
    run_cliff_study(vlm, task, wanted, tmp_path)
    after = run_cliff_study(vlm, task, plain, tmp_path)
    assert measured == []
    assert after.to_json() == before.to_json()


def test_the_page_says_both_and_fits(study, tmp_path):
    html = cliff_page(study)
    words = str(study.knockout_figures())
    assert words in study._repr_html_()
    assert words.split(":")[0] in unescape(html).replace("\u00a0", " ")
    assert json.loads(json.dumps(study.to_json()))["knockout"]["layer"] in range(4)
    path = tmp_path / "cliff.html"
    path.write_text(html, "utf-8")
    with running_browser() as browser:
        opened = OpenPage(browser, path, viewport={"width": 390, "height": 800})
        page = opened.page
        assert page.locator("[aria-label='Knockout by layer'] tbody tr").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert opened.complaints == []


def test_the_command_prints_both(vlm, task, tmp_path):
    for part in (vlm.model, vlm.processor):
        part.save_pretrained(tmp_path / "model")
    line = ["cliff", task.path, "--model", tmp_path / "model", "--out", tmp_path / "out"]
    line += ["--samples", 2, "--calibration", 1, "--knockout"]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in line])
    assert result.exit_code == 0, result.output
    assert "cut off        from it on: changed      at it alone: changed" in result.stdout
    assert "where only the rows that predict the answer never look at it" in result.stdout


def test_a_model_without_knockout_is_refused_before_anything_is_measured(task, tmp_path):
    (family,) = [family for family in FAMILIES if family.model_type == "qwen3_5"]
    wanted = CliffSettings(**SIZES, knockout=True)
    with pytest.raises(ModelError, match=r"recurrent layers, .* measure a removal curve"):
        run_cliff_study(family.lvlm(), task, wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()
