"""The same study on Ray: one model per worker, one writer, and dead workers replaced."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.errors import InputError, VlmflowError
from vlmflow.studies.store import writing
from vlmflow.studies.truncations.answering import Piece
from vlmflow.studies.truncations.in_batches import AnsweredBatch, Answering
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.prefill_time import time_prefills
from vlmflow.studies.truncations.run import About, Progress, collect, load_model
from vlmflow.studies.truncations.store import STUDY, StoredResult
from vlmflow.tasks.base import Task
from vlmflow.tasks.registry import find_task

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

IN_FLIGHT = 2
"""Jobs that wait at every worker, so that none is idle."""

MOST_PIECES = 8
"""Pieces of a job at most, where nobody says how many samples go together."""

CHECKED_EVERY = 5.0
"""Seconds after which it is checked again whether Ray itself still runs."""

TRIES = 3
"""How often a piece may take its worker with it before it counts as failed."""


class Worker:
    """A model in a process of its own, with ``threads`` for work on the CPU.

    The task is given where the plan's name of it cannot be looked up. It travels as Ray sends
    objects: a class of a module by its path, a class of ``__main__`` with its code.
    """

    def __init__(self, plan: Plan, threads: int, task: Task | None) -> None:
        self.plan, self.threads, self.task = plan, threads, task
        self.loaded: LVLM | None = None
        self.answering: Answering | None = None

    @property
    def vlm(self) -> LVLM:
        """The model, opened when it is first needed."""
        if self.loaded is None:
            import torch

            torch.set_num_threads(self.threads)
            self.loaded = load_model(self.plan)
        return self.loaded

    def about(self) -> About:
        """Describe the model."""
        return About.of(self.vlm)

    def answer(self, pieces: Sequence[Piece], length: int) -> list[AnsweredBatch]:
        """Answer some pieces, in batches."""
        if self.answering is None:
            self.answering = Answering(self.vlm, self.plan.batch, length)
        return list(self.answering(iter(pieces)))

    def time(self, model: str, measured: set[str]) -> list[tuple[str, float]]:
        """Time prefills; see :func:`vlmflow.studies.truncations.prefill_time.time_prefills`."""
        task = self.task or find_task(self.plan.task)
        arms = self.plan.arms(self.vlm.num_layers)
        return list(time_prefills(self.vlm, task, arms, self.plan.timed, model, measured))


def run_on_ray(
    plan: Plan,
    directory: Path,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    task: Task | None = None,
) -> None:
    """Run a study, or what is missing of it, on Ray; otherwise as ``run_study`` of ``run.py``.

    Connects to the cluster that ``RAY_ADDRESS`` names, or starts one on this machine. There is one
    worker per GPU, or two without any, unless ``workers`` says how many; GPUs are shared out
    evenly. A worker is handed as many samples as may go together; one that dies is replaced and its
    samples are run again, one by one. What is written is what one process would have written.

    Raises
    ------
    InputError, ModelError
        If Ray is not installed or itself ends, and as ``run_study``.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
        import ray
    except ImportError as error:
        raise InputError('--workers ray needs Ray: pip install "vlmflow[ray]"') from error
    data = task or find_task(plan.task)
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        pool = _Pool(ray, plan, workers, task)
        about = pool.ask("about")
        length = plan.max_new_tokens or data.max_new_tokens

        def timing(measured: set[str]) -> Iterator[tuple[str, float]]:
            yield from pool.ask("time", about.identity, measured)

        with writing(directory, STUDY) as store:
            answering = pool.answering(length)
            collect(plan, data, about, store, answering, timing, progress)
    finally:
        if started:
            ray.shutdown()


@dataclass(eq=False)
class _Job:
    """Pieces on their way, at one worker."""

    pieces: list[Piece]
    worker: int
    tries: int = 1

    def one_by_one(self) -> list[_Job]:
        """Return a job for each piece, so that one that kills its worker takes no other along."""
        return [_Job([piece], self.worker) for piece in self.pieces]


class _Pool:
    """Workers, and the pieces they have."""

    def __init__(self, ray: Any, plan: Plan, count: int | None, task: Task | None) -> None:
        self.ray, self.plan, self.task = ray, plan, task
        self.checked = time.monotonic()
        resources = ray.cluster_resources()
        gpus, cpus = float(resources.get("GPU", 0)), float(resources.get("CPU", 1))
        size = count or int(gpus) or 2
        self.threads = max(1, int(cpus // size))
        # A worker asks for a share that surely is there: more workers than CPUs must not wait.
        gpu = gpus / size
        share = {
            "num_cpus": min(1.0, cpus / size),
            "num_gpus": gpu if gpu < 1 else float(int(gpu)),  # Ray gives out whole ones above 1
        }
        self.kind = ray.remote(Worker).options(max_restarts=0, **share)
        self.workers = [self._new() for _ in range(size)]

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of one worker, and of a new one if that dies."""
        for _ in range(TRIES):
            try:
                reference = getattr(self.workers[0], method).remote(*arguments)
                return self._get(self._wait([reference]))
            except self.ray.exceptions.RayActorError:
                self._check_ray()
                self.workers[0] = self._new()
        raise InputError(f"{TRIES} Ray workers died one after the other; is there enough memory?")

    def answering(self, length: int) -> Callable[[Iterator[Piece]], Iterator[AnsweredBatch]]:
        """Make what answers pieces, in the order in which they are done."""
        most = self._pieces_of_a_job()

        def answer(pieces: Iterator[Piece]) -> Iterator[AnsweredBatch]:
            jobs: dict[Any, _Job] = {}
            again: deque[_Job] = deque()

            def send(job: _Job) -> None:
                jobs[self.workers[job.worker].answer.remote(job.pieces, length)] = job

            while True:
                while len(jobs) < IN_FLIGHT * len(self.workers):
                    worker = self._idlest(jobs)
                    if again:
                        job = again.popleft()
                        job.worker = worker
                    elif some := list(islice(pieces, most)):
                        job = _Job(some, worker)
                    else:
                        break
                    send(job)
                if not jobs:
                    return
                ready = self._wait(list(jobs))
                job = jobs.pop(ready)
                try:
                    yield from self._get(ready)
                except self.ray.exceptions.RayActorError:
                    self._check_ray()
                    lost = [job, *self._taken_from(jobs, job.worker)]
                    self.workers[job.worker] = self._new()
                    # The first of a worker's jobs is the one it was at.
                    first = lost.pop(0)
                    if len(first.pieces) > 1:
                        again.extend(first.one_by_one())
                    elif first.tries < TRIES:
                        first.tries += 1
                        again.append(first)
                    else:
                        yield AnsweredBatch([(own, _killed(own)) for own in first.pieces], 1)
                    again.extend(lost)

        return answer

    def _pieces_of_a_job(self) -> int:
        """Say how many pieces a worker is handed at once: few enough that each gets several."""
        if self.plan.batch != "auto":
            return self.plan.batch
        total = self.plan.samples + self.plan.calibration
        return max(1, min(MOST_PIECES, total // (4 * len(self.workers))))

    def _wait(self, references: list[Any]) -> Any:
        """Return the first reference that is there.

        Without its raylet Ray would wait for ever; without its head it goes on for a minute, and
        then ends this process.
        """
        while True:
            if time.monotonic() - self.checked > CHECKED_EVERY:
                self._check_ray()
            ready, _ = self.ray.wait(references, num_returns=1, timeout=CHECKED_EVERY)
            if ready:
                return ready[0]

    def _check_ray(self) -> None:
        """Stop where Ray's head or this machine's node has ended: new workers would never start."""
        context = self.ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        try:
            # Asking Ray itself would wait for the head, and end this process with it.
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            raise _ended("its head process (GCS)") from None
        own = context.get_node_id()
        if not any(node["Alive"] for node in self.ray.nodes() if node["NodeID"] == own):
            raise _ended("the raylet of this machine")
        self.checked = time.monotonic()

    def _get(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VlmflowError):
                raise error.cause from None
            raise

    def _new(self) -> Any:
        return self.kind.remote(self.plan, self.threads, self.task)

    def _idlest(self, jobs: dict[Any, _Job]) -> int:
        busy = [job.worker for job in jobs.values()]
        return min(range(len(self.workers)), key=busy.count)

    def _taken_from(self, jobs: dict[Any, _Job], worker: int) -> list[_Job]:
        """Take back what a dead worker still had, in the order it was sent."""
        gone = [reference for reference, job in jobs.items() if job.worker == worker]
        return [jobs.pop(reference) for reference in gone]


def _ended(what: str) -> InputError:
    return InputError(
        f"Ray itself has ended ({what} is gone); what was answered is kept: the same "
        f"{STUDY.command!r} goes on from here"
    )


def _killed(piece: Piece) -> list[StoredResult]:
    reason = f"its worker died {TRIES} times; is there enough memory?"
    return [StoredResult(id=item.id, answer=None, failure=reason) for item in piece.items]
