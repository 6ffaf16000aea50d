"""A study over a Ray cluster of several nodes: each answers, and the table is one process's.

Half a minute: ``make hard-tests`` runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

from tests.studies.test_study import write_questions
from tests.support.tiny import tiny_llava
from vlmflow.studies.truncations.plan import Plan, read_plan
from vlmflow.studies.truncations.results import read_study
from vlmflow.studies.truncations.run import run_study

pytest.importorskip("ray", reason='Ray is not installed: pip install "vlmflow[ray]"')
pytestmark = pytest.mark.skipif(
    os.environ.get("VLMFLOW_HARD_TESTS") != "all", reason="half a minute: make hard-tests"
)

RUN = """
from pathlib import Path

import ray

from vlmflow import cli
from vlmflow.studies.truncations import ray_workers

class Noting(ray_workers.Worker):
    def answer(self, piece, length):
        node = ray.get_runtime_context().get_node_id()
        (Path({nodes!r}) / node).touch()
        return super().answer(piece, length)

if __name__ == "__main__":
    ray_workers.Worker = Noting
    cli.main()
"""


def test_a_study_runs_on_every_node_of_a_cluster(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for part in tiny_llava(7, layers=4):
        part.save_pretrained(tmp_path / "model")
    questions = write_questions(tmp_path, 12)
    written = tmp_path / "plan.yaml"
    written.write_text(
        f"{{task: {questions}, model: {tmp_path / 'model'}, truncations: ['layer=1,keep=0'], "
        "samples: 6, calibration: 6, timed: 0, max_new_tokens: 4, device: cpu}"
    )
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        code = RUN.format(nodes=str(nodes))
        command = [sys.executable, "-c", code, "study", written, "--workers", "ray:2", "--out"]
        subprocess.run(
            [*command, tmp_path / "ray"],
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            check=True,
            timeout=300,
        )
    finally:
        cluster.shutdown()
    assert len(list(nodes.iterdir())) == 2
    plan = Plan.from_mapping(read_plan(written))
    run_study(plan, tmp_path / "alone")
    study, other = (read_study(tmp_path / name) for name in ("ray", "alone"))
    pd.testing.assert_frame_equal(study.result_frame(), other.result_frame())
    assert not study.failures
