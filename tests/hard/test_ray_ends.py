"""Where Ray itself ends in the middle of a study, that is said, and what was answered is kept.

Half a minute for each of its processes: ``make hard-tests`` ends them.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pandas as pd
import psutil
import pytest

from tests.studies.test_study import write_questions
from tests.support.tiny import tiny_llava
from vlmflow.studies.truncations.plan import Plan, read_plan
from vlmflow.studies.truncations.results import read_study
from vlmflow.studies.truncations.run import run_study

pytest.importorskip("ray", reason='Ray is not installed: pip install "vlmflow[ray]"')

PROCESSES = ["raylet/raylet", "gcs/gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent"]
pytestmark = pytest.mark.skipif(
    os.environ.get("VLMFLOW_HARD_TESTS") != "all", reason="half a minute each: make hard-tests"
)
SAMPLES = 12

RUN = """
import sys, time
from vlmflow import cli
from vlmflow.studies.truncations import ray_workers

class Slow(ray_workers.Worker):
    def answer(self, piece, length):
        time.sleep(2.5)  # Ray takes 16 s to notice, and something must be left to do
        return super().answer(piece, length)

if __name__ == "__main__":
    ray_workers.Worker, ray_workers.CHECKED_EVERY = Slow, 0.5
    cli.main()
"""


@pytest.mark.parametrize("name", PROCESSES)
def test_ray_itself_ends(name, tmp_path):
    for part in tiny_llava(7, layers=4):
        part.save_pretrained(tmp_path / "model")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"{{task: {write_questions(tmp_path, 2 * SAMPLES)}, model: {tmp_path / 'model'}, "
        f"truncations: ['layer=1,keep=0'], samples: {SAMPLES}, calibration: {SAMPLES}, timed: 0, "
        "max_new_tokens: 4, device: cpu}"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", RUN, "study", plan, "--workers", "ray:2", "--out", out]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_samples(out, 3, process)
        (victim,) = (
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.cmdline() and child.cmdline()[0].strip().endswith(name)
        )
        victim.kill()
        _, complaints = process.communicate(timeout=120)
    assert process.returncode == 2, complaints
    (line,) = (line for line in complaints.splitlines() if line.startswith("vlmflow: "))
    assert "Ray itself has ended" in line
    assert "what was answered is kept: the same 'vlmflow study' goes on from here" in line
    assert "Traceback" not in complaints
    kept = stored(out)
    assert 3 <= kept < 2 * SAMPLES
    plain = Plan.from_mapping(read_plan(plan))
    steps = []
    run_study(plain, out, progress=steps.append)
    assert steps[-1].new == 2 * SAMPLES - kept
    run_study(plain, tmp_path / "alone")
    study, other = (read_study(folder) for folder in (out, tmp_path / "alone"))
    pd.testing.assert_frame_equal(study.result_frame(), other.result_frame())
    assert not study.failures


def wait_for_samples(out, count, process):
    until = time.monotonic() + 120
    while stored(out) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "no sample was answered"
        time.sleep(0.1)


def stored(out):
    """Return the number of samples that are answered."""
    try:
        with closing(sqlite3.connect(f"file:{out}/study.sqlite?mode=ro", uri=True)) as base:
            (arms, rows) = base.execute(
                "SELECT (SELECT count(*) FROM sample), (SELECT count(*) FROM result)"
            ).fetchone()
            return min(arms, rows // 4)
    except sqlite3.OperationalError:
        return 0
