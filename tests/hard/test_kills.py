"""Studies that are killed at any moment end, when they go on, as if nothing had happened.

``VLMFLOW_HARD_TESTS=all`` kills twenty times; otherwise a tenth of these kills is tried.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.studies.test_study import write_questions
from tests.support.tiny import tiny_llava

KILLS = 20
SEED = 7
FAITHFULNESS = ["--signals", "saliency", "--steps", "2", "--sanity", "1", "--timed", "0"]
SHARED = ["--samples", "9", "--calibration", "9", "--device", "cpu"]
PLAN = "truncations: ['layer=1,keep=0', 'layer=2,keep=0.5']\ntimed: 0\nmax_new_tokens: 4\n"
TABLES = {
    "study": ["arms.csv", "results.csv"],
    "cliff": ["cliff.json", "layers.csv", "samples.csv"],
    "faithfulness": ["faithfulness.json", "maps.csv", "samples.csv"],
}

# One process imports everything once, and every run is a process that it forks.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["vlmflow.api", "vlmflow.reports.directory", "vlmflow.cli"])


def chosen_kills() -> list[int]:
    if os.environ.get("VLMFLOW_HARD_TESTS") == "all":
        return list(range(KILLS))
    return sorted(random.Random(SEED).sample(range(KILLS), KILLS // 10))


def run(arguments: list[str], log: Path) -> None:
    """Be the command line, in a process of its own."""
    from vlmflow import cli

    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["vlmflow", *arguments]
    cli.main()


class Study:
    """One of the commands on one set of questions, and what it writes uninterrupted."""

    def __init__(self, command: str, folder: Path, model: Path) -> None:
        self.command, self.folder = command, folder
        questions, plan = str(write_questions(folder, 18)), folder / "plan.yaml"
        (folder / "3.png").write_bytes(b"no picture")
        plan.write_text(PLAN)
        own = {
            "study": [str(plan), "--task", questions],
            "cliff": [questions, "--batch", "2"],
            "faithfulness": [questions, *FAITHFULNESS],
        }
        self.arguments = [command, *own[command], "--model", str(model), *SHARED]
        began = time.monotonic()
        self.expected = self.tables(self.finish(folder / "whole"))
        self.seconds = time.monotonic() - began

    def start(self, out: Path) -> BaseProcess:
        arguments = [*self.arguments, "--out", str(out)]
        process = FORKED.Process(target=run, args=(arguments, self.folder / "log"))
        process.start()
        return process

    def finish(self, out: Path) -> Path:
        process = self.start(out)
        process.join(120)
        assert process.exitcode == 0, (self.folder / "log").read_text()
        return out

    def tables(self, out: Path) -> dict[str, bytes]:
        return {name: (out / name).read_bytes() for name in TABLES[self.command]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in tiny_llava(7, layers=4):
        part.save_pretrained(folder)
    return folder


def chosen_commands() -> list[str]:
    """All, or those whose runs are short: the others are interrupted in tests of their own."""
    everything = os.environ.get("VLMFLOW_HARD_TESTS") == "all"
    return [command for command in TABLES if everything or command != "faithfulness"]


@pytest.fixture(scope="module", params=chosen_commands())
def study(request, model, tmp_path_factory):
    return Study(request.param, tmp_path_factory.mktemp(request.param), model)


@pytest.mark.parametrize("number", chosen_kills())
def test_a_killed_study_goes_on_as_if_nothing_had_happened(study, number, tmp_path):
    out = tmp_path / "killed"
    process = study.start(out)
    time.sleep(random.Random(f"{SEED} {number}").random() * study.seconds)
    process.kill()
    process.join(30)
    # A kill in the last moments may find it finished.
    assert process.exitcode in (-signal.SIGKILL, 0)
    study.finish(out)
    assert study.tables(out) == study.expected
    left = {path.name for path in out.iterdir() if path.name.startswith(".vlmflow-")}
    assert left == set()
    assert not (out / f"{study.command}.sqlite-journal").exists()
