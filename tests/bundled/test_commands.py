"""Every command runs on every bundled model by its name, and means something there."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support.number_format import QUICKLY
from tests.support.smollm2 import BUNDLED_MODELS
from vlmflow import cli
from vlmflow.bundled.shelf import bundled_models
from vlmflow.scenes import samples


@pytest.fixture(scope="module", params=BUNDLED_MODELS)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    (sample,) = samples("scenes-existence", "test", 1)
    picture = tmp_path_factory.mktemp("sample") / "picture.png"
    sample.picture.save(picture)
    return picture, sample.question, sample.answer


def run(*arguments):
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(cli.app, [*given, *QUICKLY])
    assert result.exit_code == 0, result.output
    return result


def test_all_bundled_models_are_tested():
    tested = {getattr(model, "values", (model,))[0] for model in BUNDLED_MODELS}
    assert tested == set(bundled_models())


def test_explain(model, question, tmp_path):
    picture, asked, answer = question
    run("explain", picture, asked, "--model", model, "--whole", "--out", tmp_path)
    flow = vlmflow.InformationFlow.load(tmp_path)
    assert flow.answer == answer
    assert flow.model == model
    assert flow.layout.image_positions.size == (36 if model == "scenes-smolvlm" else 144)
    assert asked in (tmp_path / "report.html").read_text("utf-8")


def test_generate_truncated(model, question):
    picture, asked, answer = question
    options = ["--model", model, "--truncate", "layer=1,keep=1.0", "--compare", "--json"]
    said = json.loads(run("generate", picture, asked, *options).stdout)
    assert said["untouched"]["answer"] == said["answer"] == answer


def test_cliff_and_study(model, tmp_path):
    options = ["--model", model, "--samples", 2, "--calibration", 2]
    run("cliff", "scenes-existence", *options, "--out", tmp_path / "cliff")
    layers = json.loads((tmp_path / "cliff" / "cliff.json").read_text())["layers"]
    assert layers[0]["changed"] > layers[-1]["changed"]
    truncate = ["--truncate", "layer=1,keep=0", "--timed", 0, "--out", tmp_path / "study"]
    run("study", "--task", "scenes-existence", *options, *truncate)
    arms = pd.read_csv(tmp_path / "study" / "arms.csv").set_index(["split", "arm"])["score"]
    assert arms["test", "untouched"] == 1
    assert arms["test", "no image"] < 1
