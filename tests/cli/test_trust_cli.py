"""``vlmflow trust`` says one sentence, or one object, and refuses what cannot be tested."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import vlmflow
from tests.support.number_format import QUICKLY
from vlmflow import cli


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    picture, question = vlmflow.sample("scenes-reading", index=3)
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    picture.save(path)
    return [str(path), question]


def run(*arguments):
    return CliRunner().invoke(cli.app, ["trust", *map(str, arguments), *QUICKLY])


def test_one_sentence_and_one_object(asked):
    said = run(*asked, "--signal", "saliency", "--layer", 4, "--steps", 4)
    assert said.exit_code == 0, said.output
    (line,) = said.stdout.splitlines()
    assert line.startswith("'70'. The saliency at layer 4 ranks regions better than chance")
    facts = json.loads(
        run(*asked, "--signal", "saliency", "--layer", 4, "--steps", 4, "--json").stdout
    )
    assert f"{facts['difference']:+.3f}" in line
    assert facts["difference"] == pytest.approx(facts["insertion"] - facts["deletion"])
    assert len(facts["insertion_curve"]) == 5
    assert len(facts["random"]) == 8


def test_a_control_in_place_of_a_map(asked):
    said = run(*asked, "--signal", "edges", "--steps", 4)
    assert said.exit_code == 0, said.output
    assert "The edges control ranks regions" in said.stdout


def test_a_map_of_the_whole_model_needs_no_layer_and_no_gradient(asked, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", None)
    said = run(*asked, "--signal", "tam", "--steps", 2)
    assert said.exit_code == 0, said.output
    assert "The TAM ranks regions" in said.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--signal", "gradcam"), "signal 'gradcam' is unknown"),
        (("--signal", "saliency"), "has one map per layer: name a layer"),
        (("--layer", "2"), "is summed over layers: leave layer out"),
        (("--signal", "saliency", "--layer", "99"), "layer=99, but this model has 12"),
        (("--steps", "0"), "--steps"),
        (("--batch", "0"), "'0' is neither auto nor a number from 1 on"),
        (("--batch", "none"), "'none' is neither auto nor a number from 1 on"),
        (("--layer", "-1"), "--layer"),
        (("--replacement", "pink"), "replacement"),
    ],
)
def test_what_cannot_be_tested_is_refused(asked, options, message):
    refused = run(*asked, *options)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_an_explanation_is_tested_as_it_is_made(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmflow.trust.of_explanation.EXPLAINED_STEPS", 2)
    arguments = ["explain", *asked, "--signals", "attention", "--whole", "--trust", *QUICKLY]
    said = CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path / "one")])
    assert said.exit_code == 0, said.output
    first, sentence = said.stdout.splitlines()
    assert first.startswith("'70' -> ")
    assert sentence.startswith("The attention at layer ")
    flow = vlmflow.InformationFlow.load(tmp_path / "one")
    assert [str(tested) for tested in flow.trust] == [sentence]
    assert sentence.split(":")[0] in (tmp_path / "one" / "report.html").read_text("utf-8")


def test_the_answers_to_a_task_are_tested_and_truncated(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmflow.trust.of_explanation.EXPLAINED_STEPS", 2)
    arguments = ["explain", "scenes-reading", "--samples", "1", "--signals", "attention", "--whole"]
    arguments += QUICKLY
    arguments += ["--trust", "--truncate", "layer=6,keep=8", "--out", str(tmp_path / "all")]
    said = CliRunner().invoke(cli.app, arguments)
    assert said.exit_code == 0, said.output
    (folder,) = (path for path in (tmp_path / "all").iterdir() if path.is_dir())
    flow = vlmflow.InformationFlow.load(folder)
    assert len(flow.trust) == 1
    assert flow.truncated.settings["layer"] == 6
