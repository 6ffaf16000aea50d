"""One job at a time, in order, each seen and stopped by who asked for it."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest

from vlmflow.app.jobs import Job, StoppedError, Worker
from vlmflow.errors import InputError, ModelError


@contextmanager
def working(load=lambda: None, most_waiting=3, unwatched=60.0):
    worker = Worker(load, most_waiting, unwatched)
    try:
        yield worker
    finally:
        worker.stop()


def seen(job: Job) -> list[dict]:
    """Everything that a watcher of a job is shown, until its end."""

    async def watch():
        return [shown async for shown in job.watch() if shown is not None]

    return asyncio.run(watch())


class Held:
    """Work that goes on until it is let go, checking as real work does."""

    def __init__(self):
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, job):
        self.began.set()
        while not self.go.wait(0.005):
            job.check()


def test_jobs_run_one_after_the_other_in_their_order():
    order, running = [], []

    def work(number):
        def do(job):
            running.append(number)
            assert len(running) == 1
            job.progress("at it", 1, 2)
            order.append(number)
            running.remove(number)

        return do

    with working() as worker:
        jobs = [worker.submit(work(number)) for number in range(3)]
        assert [seen(job)[-1]["status"] for job in jobs] == ["done"] * 3
    assert order == [0, 1, 2]


def test_who_waits_is_told_how_many_come_first_and_too_many_are_refused():
    with working() as worker:
        first = Held()
        head = worker.submit(first)
        assert first.began.wait(10)
        waiting = [worker.submit(lambda job: None) for _ in range(3)]
        assert [seen_now(job)["says"] for job in waiting] == [
            "1 other job runs first",
            "2 other jobs run first",
            "3 other jobs run first",
        ]
        with pytest.raises(InputError, match="3 other questions are waiting already"):
            worker.submit(lambda job: None)
        worker.cancel(waiting[0])
        assert seen(waiting[0])[-1]["status"] == "cancelled"
        assert seen_now(waiting[1])["place"] == 1
        first.go.set()
        assert [seen(job)[-1]["status"] for job in (head, *waiting[1:])] == ["done"] * 3


def seen_now(job: Job) -> dict:
    async def first():
        watching = job.watch()
        try:
            return await anext(watching)
        finally:
            await watching.aclose()

    return asyncio.run(first())


def test_a_running_job_stops_where_it_checks_and_the_next_one_runs():
    with working() as worker:
        held = Held()
        job, after = worker.submit(held), worker.submit(lambda job: job.show({"says": "ran"}))
        assert held.began.wait(10)
        worker.cancel(job)
        assert seen(job)[-1]["status"] == "cancelled"
        assert seen(after)[-1]["status"] == "done"


def test_what_stopped_work_makes_of_its_end_is_still_a_stop():
    """Libraries wrap what is raised inside of them."""

    def work(job):
        try:
            while True:
                job.check()
        except StoppedError as stop:
            raise RuntimeError("wrapped") from stop

    with working() as worker:
        job = worker.submit(work)
        worker.cancel(job)
        assert seen(job)[-1]["status"] == "cancelled"


def test_a_job_that_nobody_watches_is_given_up():
    with working(unwatched=0.0) as worker:
        held = Held()
        job = worker.submit(held)
        assert held.began.wait(10)
        time.sleep(0.01)
        worker.sweep()
        assert seen(job)[-1]["status"] == "cancelled"


def test_a_users_error_is_told_and_a_bug_is_not(caplog):
    def wrong(job):
        raise InputError("the question is wrong; ask another")

    def broken(job):
        raise KeyError("/home/someone/secret.py")

    def full(job):
        raise MemoryError

    with working() as worker:
        says = [seen(worker.submit(work))[-1] for work in (wrong, broken, full)]
    assert {shown["status"] for shown in says} == {"failed"}
    assert says[0]["says"] == "the question is wrong; ask another"
    assert "secret" not in str(says[1])
    assert "the terminal" in says[1]["says"]
    assert "secret.py" in caplog.text  # which the terminal gets
    assert "not enough memory" in says[2]["says"]


def test_a_panic_ends_the_job_and_not_the_worker(caplog):
    class PanicException(BaseException):  # tokenizers' and safetensors' are no Exceptions
        pass

    def panics(job):
        raise PanicException("unwrap on a None value")

    with working() as worker:
        assert seen(worker.submit(panics))[-1]["status"] == "failed"
        assert seen(worker.submit(lambda job: None))[-1]["status"] == "done"
    assert "unwrap" in caplog.text


def test_the_model_is_loaded_once_and_asked_for_again_where_it_failed():
    calls = []

    def load():
        calls.append(len(calls))
        if len(calls) == 1:
            raise ModelError("there is no such model; name another")

    with working(load) as worker:
        assert worker.model_status == "asleep"
        last = seen(worker.submit(lambda job: None))[-1]
        assert (last["status"], last["says"]) == ("failed", "there is no such model; name another")
        for _ in range(2):
            assert seen(worker.submit(lambda job: None))[-1]["status"] == "done"
        assert worker.model_status == "ready"
    assert calls == [0, 1]


def test_preparing_loads_the_model_without_a_job():
    loaded = threading.Event()
    with working(loaded.set) as worker:
        assert not loaded.is_set()
        worker.prepare()
        assert loaded.wait(10)


def test_stopping_ends_what_runs():
    held = Held()
    worker = Worker(lambda: None, 3, 60.0)
    job = worker.submit(held)
    assert held.began.wait(10)
    assert worker.stop()
    assert job.status == "cancelled"
    began, deaf = threading.Event(), threading.Event()

    def listens_to_nobody(job):
        began.set()
        deaf.wait(30)

    worker = Worker(lambda: None, 3, 60.0)
    worker.submit(listens_to_nobody)
    assert began.wait(10)
    assert not worker.stop(0.1)  # whoever ends the process must not wait for it
    deaf.set()
