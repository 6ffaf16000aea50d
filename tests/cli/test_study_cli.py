"""`vlmflow study`, `vlmflow report` and the lists, as a person types them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.studies.test_study import write_questions
from tests.support.tiny import tiny_llava
from vlmflow import cli
from vlmflow.statistics.loss_tests import least_samples
from vlmflow.tasks.registry import known_tasks
from vlmflow.truncation.presets import PRESETS
from vlmflow.truncation.rankings.registry import RANKINGS

FILES = {"study.html", "study.png", "study.pdf", "arms.csv", "results.csv", "results.parquet"}


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in tiny_llava(7, layers=4):
        part.save_pretrained(folder)
    return folder


def test_a_study_from_a_file_and_options(model, tmp_path):
    config = tmp_path / "study.yaml"
    plain = {"task": str(write_questions(tmp_path)), "samples": 4, "calibration": 4, "timed": 1}
    config.write_text(json.dumps({**plain, "truncations": [{"layer": 1, "keep": 0}]}))  # is YAML
    options = ["--model", model, "--truncate", "layer=2,keep=0.5", "--preset", "fastv"]
    out = tmp_path / "out"
    result = run("study", config, *options, "--samples", 3, "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    reason = f"takes at least {least_samples(0.03, 3)} calibration samples, and there are 4"
    assert result.stderr.startswith("note: no truncation can be found safe: ")
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("note: "))
    assert reason in line
    assert "cannot tell whether any truncation is safe" in result.stdout
    assert reason in result.stdout
    assert str(out / "study.html") in result.output
    assert {item.name for item in out.iterdir()} >= FILES
    results = pd.read_parquet(out / "results.parquet")
    table = pd.read_csv(out / "results.csv", dtype=str, keep_default_na=False)
    for column in ("split", "key", "arm", "question", "answer"):
        assert table[column].tolist() == results[column].tolist()
    assert len(results[results["split"] == "test"]["key"].unique()) == 3
    names = set(pd.read_csv(out / "arms.csv")["arm"])
    assert names >= {
        *("untouched", "no image", "layer 1, keep 0", "fastv"),
        *("layer 2, keep 50 % by last_attention", "random: layer 2, keep 50 % by random"),
        "down-sampled as layer 1, keep 0",
    }
    before = {name: (out / name).read_bytes() for name in FILES}
    for name in FILES:
        (out / name).unlink()
    again = run("report", out)
    assert again.exit_code == 0
    assert again.output == result.stdout
    assert {name: (out / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("task: scenes-reading\nlayers: 3", [], "no option 'layers'"),
        ("task: scenes-readng\ntruncations: ['layer=1,keep=0']", [], "unknown task"),
        ("task: scenes-reading", [], "there is none"),
        ("task: scenes-reading", ["--preset", "fastw"], "unknown preset"),
        ("task: scenes-reading", ["--truncate", "layer=99,keep=0"], "layer=99"),
        ("task: scenes-reading", ["--truncate", "layer=9,keep=0", "--samples", "0"], "samples=0"),
        ("task: scenes-reading", ["--preset", "vtw", "--workers", "slurm"], "workers='slurm'"),
        ("task: [", ["--preset", "vtw"], "not YAML"),
    ],
)
def test_a_wrong_study_is_one_line_and_leaves_nothing(tmp_path, text, options, message):
    config = tmp_path / "study.yaml"
    config.write_text(text)
    result = run("study", config, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_study_needs_a_directory_and_a_report_a_study(tmp_path):
    result = run("study", "--task", "scenes-reading", "--preset", "vtw")
    assert result.exit_code == 2
    assert "--out" in result.stderr
    result = run("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no study" in result.stderr


def test_the_lists_name_everything():
    for command, names in (
        ("tasks", [item.name for item in known_tasks()]),
        ("rankings", list(RANKINGS.bundled())),
        ("presets", list(PRESETS)),
    ):
        result = run(command)
        assert result.exit_code == 0
        rows = result.output.splitlines()
        assert [row.split()[0] for row in rows[: len(names)]] == names
        assert all(len(row.split()) > 3 for row in rows[: len(names)])


def test_an_interrupt_keeps_what_is_there_and_says_so(model, tmp_path, monkeypatch):
    from vlmflow.studies.truncations import in_batches

    answer, seen = in_batches.answer_samples, []

    def interrupted(*arguments):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return answer(*arguments)

    monkeypatch.setattr(in_batches, "answer_samples", interrupted)
    task, out = write_questions(tmp_path), tmp_path / "out"
    options = ["--samples", 3, "--calibration", 3, "--timed", 0, "--device", "cpu", "--batch", 1]
    command = ["study", "--task", task, "--model", model, "--preset", "fastv", "--out", out]
    result = run(*command, *options)
    assert result.exit_code == 130
    assert "the same command continues from here" in result.stderr
    monkeypatch.setattr(
        in_batches, "answer_samples", lambda *given: seen.append(1) or answer(*given)
    )
    assert run(*command, *options).exit_code == 0
    assert len(seen) == 6
