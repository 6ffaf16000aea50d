"""A study on Ray ends with the table that one process would have written."""

from __future__ import annotations

import os
import signal

import pandas as pd
import psutil
import pytest

from tests.studies.test_study import plan_of, write_questions
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError, ModelError
from vlmflow.studies.truncations.results import read_study
from vlmflow.studies.truncations.run import run_study
from vlmflow.studies.truncations.workers import run_with

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "vlmflow[ray]"')
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs by name, however many there are."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (as Ray spells it); or other tests would have them starve
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Workers open the model themselves, so it lies in a directory."""
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_llava(7, layers=4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def worker_processes():
    """Processes that hold a model, by the titles Ray gives them."""
    processes = psutil.Process().children(recursive=True)
    return [
        process
        for process in processes
        if process.is_running() and "ray::Worker" in " ".join(process.cmdline())
    ]


def test_one_worker_is_killed_and_the_table_is_the_same(cluster, model, tmp_path):
    questions = write_questions(tmp_path, 12)
    plan = plan_of(questions, model=str(model), samples=6, calibration=6, device="cpu", batch=2)
    killed = []

    def kill_one(now):
        if now.done >= 3 and not killed:
            victim = worker_processes()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    run_with("ray", plan, tmp_path / "ray", kill_one)  # two workers where there is no GPU
    assert killed
    run_study(plan, tmp_path / "alone")
    study, other = (read_study(tmp_path / name) for name in ("ray", "alone"))
    pd.testing.assert_frame_equal(study.result_frame(), other.result_frame())
    assert not study.failures
    assert all(line.prefill for line in study.summaries)


@pytest.mark.skipif(
    os.environ.get("VLMFLOW_HARD_TESTS") != "all", reason="a minute or two: make hard-tests"
)
def test_a_piece_that_kills_every_worker_is_told_as_failed(cluster, model, tmp_path, monkeypatch):
    """Workers that fall over one question; the others are answered."""
    from vlmflow.studies.truncations import ray_workers

    class Mortal(ray_workers.Worker):
        def answer(self, pieces, length):
            if any("3" in piece.sample.question for piece in pieces):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().answer(pieces, length)

    monkeypatch.setattr(ray_workers, "Worker", Mortal)
    monkeypatch.setattr(ray_workers, "TRIES", 2)  # every one starts a worker anew
    questions = write_questions(tmp_path)
    plan = plan_of(questions, model=str(model), timed=0, batch=3)
    run_with("ray:2", plan, tmp_path / "out")
    study = read_study(tmp_path / "out")
    assert {(failure.split, failure.key) for failure in study.failures} == {("calibration", "4")}
    assert "died 2 times" in study.failures[0].reason


def test_a_model_that_cannot_be_opened_is_told_in_one_line(cluster, tmp_path):
    questions = write_questions(tmp_path)
    with pytest.raises(ModelError, match="nowhere") as error:
        run_with("ray:1", plan_of(questions, model="./nowhere"), tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", ["rays", "ray:0", "ray:x", ""])
def test_other_workers_are_refused(workers, tmp_path):
    with pytest.raises(InputError, match="give ray, or ray:4"):
        run_with(workers, plan_of("x"), tmp_path)
