"""Video files on the command line, where a model takes them: reports, answers, curves, studies."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support.clips import clip
from tests.support.families import SIZES, picture
from tests.support.tiny_video import named
from vlmflow.cli import app
from vlmflow.result.information_flow import InformationFlow
from vlmflow.studies.truncations import run as run_module

SHORT = ("--max-new-tokens", "2")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A clip, a picture and questions about both; whatever model is asked for is a tiny Qwen2-VL.

    A directory of it could not be loaded: its video processor needs torchvision.
    """
    monkeypatch.chdir(tmp_path)
    vlm = named("qwen2_vl").lvlm()
    monkeypatch.setattr(vlmflow, "load", lambda *_, **__: vlm)
    monkeypatch.setattr(run_module, "load_model", lambda _plan: vlm)
    clip(tmp_path / "clip.mp4", 16)
    picture(1, SIZES[0]).save(tmp_path / "picture.png")
    rows = [
        {"video": "clip.mp4", "question": "What is it?", "answer": "red"},
        {"video": "clip.mp4", "image": "picture.png", "question": "What is it?", "answer": "a"},
        {"image": "picture.png", "question": "What is it?", "answer": "blue"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "clips.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_explain_takes_a_video_beside_a_picture(files):
    said("explain", "clip.mp4", "What is it?", "--image", "picture.png", "--out", "out", *SHORT)
    flow = InformationFlow.load(files / "out")
    labels = [flow.layout.frames_label(image) for image in range(len(flow.pictures))]
    assert labels == ["0:00.0–0:00.5", "0:01.0–0:01.5", ""]
    page = (files / "out" / "report.html").read_text(encoding="utf-8")
    assert "0:01.0–0:01.5" in page


def test_generate_takes_so_many_frames(files):
    facts = json.loads(said("generate", "clip.mp4", "What is it?", "--json", *SHORT))
    fewer = json.loads(said("generate", "clip.mp4", "What is it?", "--frames", 2, "--json", *SHORT))
    cut = json.loads(
        said(
            "generate", "clip.mp4", "What is it?", "--truncate", "layer=1,keep=2", "--json", *SHORT
        )
    )
    one_group = facts["cached_tokens"][0] - fewer["cached_tokens"][0]
    assert one_group > 2
    assert cut["cached_tokens"][1] == facts["cached_tokens"][1] - 2 * one_group + 2


def test_studies_take_a_file_of_questions_about_videos(files):
    said("explain", "clips.jsonl", "--samples", 2, "--out", "answers", *SHORT)
    assert (files / "answers" / "index.html").read_text(encoding="utf-8").count("data:image") == 2
    said("cliff", "clips.jsonl", "--out", "cliff", "--samples", 2, "--calibration", 1)
    said(
        *("study", "--task", "clips.jsonl", "--out", "study", "--truncate", "layer=1,keep=0"),
        *("--samples", 2, "--calibration", 1, "--timed", 0, "--controls", "random"),
    )
    results = pd.read_csv(files / "study" / "results.csv", keep_default_na=False)
    assert set(results["failure"]) == {""}


def test_maps_of_videos_are_tested(files, monkeypatch):
    monkeypatch.setattr("vlmflow.trust.of_explanation.EXPLAINED_STEPS", 1)
    question = ("clip.mp4", "What is it?", "--max-new-tokens", 1)
    by_map = ("--signal", "attention", "--layer", 1, "--frames", 3, "--steps", 2)
    (line,) = said("trust", *question, *by_map).splitlines()
    assert "The attention at layer 1 ranks regions" in line
    said("explain", *question, "--signals", "attention", "--whole", "--trust", "--out", "out")
    (tested,) = InformationFlow.load(files / "out").trust
    assert f"{tested.difference:+.3f}" in str(tested)


def test_maps_are_tested_over_a_task_about_videos(files):
    said(
        *("faithfulness", "scenes-clips", "--out", "faith", "--signals", "attention"),
        *("--samples", 1, "--calibration", 1, "--layer", 1, "--layer", 2, "--steps", 1),
        *("--sanity", 0, "--timed", 0),
    )
    samples = pd.read_csv(files / "faith" / "samples.csv", keep_default_na=False)
    assert set(samples["failure"]) == {""}
    maps = pd.read_csv(files / "faith" / "maps.csv")
    assert set(maps["replacement"]) == {"black", "tokens"}
    assert not (files / "faith" / "places.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("explain", "missing.mp4", "?"), "missing.mp4' does not exist"),
        (("generate", "missing.mp4", "?"), "missing.mp4' does not exist"),
        (("generate", "picture.png", "?", "--frames", "2"), "--frames 2 is for video files"),
        (("generate", "clip.mp4", "?", "--frames", "0"), "frames=0; give an integer from 1"),
        (("explain", "clips.jsonl", "--frames", "2"), "--frames is for one picture"),
        (("trust", "missing.mp4", "?"), "missing.mp4' does not exist"),
        (("trust", "picture.png", "?", "--frames", "2"), "--frames 2 is for video files"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(files, arguments, pattern):
    result = run(*arguments)
    assert result.exit_code == 2
    assert pattern in " ".join(result.output.replace("│", " ").split())
    assert not (files / "vlmflow-report").exists()
