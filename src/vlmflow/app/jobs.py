"""Work on the model: one job after the other, each watched and cancelled by who asked for it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from vlmflow.errors import InputError, VlmflowError, is_out_of_memory

Work = Callable[["Job"], None]

LOG = logging.getLogger("vlmflow.app")
ENDED = ("done", "failed", "cancelled")
KEPT_AFTER = 120.0
"""Seconds for which the end of a job can still be read, by a page whose connection broke."""


class StoppedError(Exception):
    """Raised inside a job's work once nobody wants it any more."""


class Job:
    """One piece of work: what its watchers see of it, and whether it is still wanted.

    Parameters
    ----------
    work : callable
        Does it, in the worker's thread; is given the job.
    """

    def __init__(self, work: Work) -> None:
        self.id = secrets.token_urlsafe(24)
        self.work = work
        self.ended: float | None = None
        self._watchers = 0
        self._unwatched_since = time.monotonic()
        self._shown: dict[str, Any] = {"status": "waiting", "place": 0, "says": ""}
        self._version = 0
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._bells: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def show(self, changes: Mapping[str, Any]) -> None:
        """Change what watchers see."""
        with self._lock:
            self._shown = {**self._shown, **changes}
            self._version += 1
            bells = list(self._bells)
        for loop, bell in bells:
            try:
                loop.call_soon_threadsafe(bell.set)
            except RuntimeError:  # the server has stopped
                return

    def progress(self, says: str, done: int = 0, total: int = 0) -> None:
        """Say what is going on, and stop here if it is not wanted any more."""
        self.check()
        self.show({"says": says, "done": done, "total": total})

    def check(self) -> None:
        """Raise StoppedError if the job is not wanted any more."""
        if self._cancelled.is_set():
            raise StoppedError

    def cancel(self) -> None:
        """Ask the work to stop, at its next token, layer or sample."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked the work to stop."""
        return self._cancelled.is_set()

    def unwatched(self, now: float) -> float:
        """Return for how many seconds nobody has watched the job."""
        return 0.0 if self._watchers else now - self._unwatched_since

    @property
    def status(self) -> str:
        """``"waiting"``, ``"running"``, or how the job ended."""
        return str(self._shown["status"])

    async def watch(self) -> AsyncIterator[dict[str, Any] | None]:
        """Give what there is to see now and after each change, until the end.

        None now and then, where nothing changes: whoever sends it on learns that nobody listens.
        """
        bell = asyncio.Event()
        entry = (asyncio.get_running_loop(), bell)
        with self._lock:
            self._bells.add(entry)
            self._watchers += 1
        seen = -1
        try:
            while True:
                bell.clear()
                with self._lock:
                    version, shown = self._version, self._shown
                if version != seen:
                    seen = version
                    yield shown
                    if shown["status"] in ENDED:
                        return
                try:
                    await asyncio.wait_for(bell.wait(), timeout=5.0)
                except asyncio.TimeoutError:
                    yield None
        finally:
            with self._lock:
                self._bells.discard(entry)
                self._watchers -= 1
                self._unwatched_since = time.monotonic()


class Worker:
    """The one thread that uses the model, and the queue before it.

    Parameters
    ----------
    load : callable
        Loads the model; is called once, in the worker's thread, when the first job or
        :meth:`prepare` asks for it.
    most_waiting : int
        Jobs that may wait; further ones are refused.
    unwatched : float
        Seconds after which a job that nobody watches is given up.
    """

    def __init__(self, load: Callable[[], None], most_waiting: int, unwatched: float) -> None:
        self._load, self._most_waiting, self._unwatched = load, most_waiting, unwatched
        self.model_status, self.model_says = "asleep", ""
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._wanted = self._stopping = False
        self._changed = threading.Condition()
        # A daemon: an operation that takes minutes must not keep a stopped server alive.
        self._thread = threading.Thread(target=self._run, name="vlmflow-app-model", daemon=True)
        self._thread.start()

    def prepare(self) -> None:
        """Load the model in the background, if that was not done yet."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def submit(self, work: Work) -> Job:
        """Put work into the queue.

        Raises
        ------
        InputError
            If too much is waiting already.
        """
        job = Job(work)
        with self._changed:
            if len(self._waiting) >= self._most_waiting:
                raise InputError(
                    f"{len(self._waiting)} other questions are waiting already; try again in a "
                    "minute"
                )
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._tell_places()
            self._changed.notify_all()
        return job

    def job(self, name: str) -> Job | None:
        """Return a job by its id."""
        return self._jobs.get(name)

    def stop(self, seconds: float = 2.0) -> bool:
        """Cancel everything, and wait for the thread to come to its end; whether it has."""
        with self._changed:
            self._stopping = True
            for job in self._jobs.values():
                job.cancel()
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def sweep(self) -> None:
        """Give up what nobody watches, and forget what ended long ago; called now and then."""
        now = time.monotonic()
        with self._changed:
            for job in list(self._jobs.values()):
                if job.ended is not None and now - job.ended > KEPT_AFTER:
                    del self._jobs[job.id]
                elif job.ended is None and job.unwatched(now) > self._unwatched:
                    job.cancel()
            for job in [job for job in self._waiting if job.is_cancelled]:
                self._waiting.remove(job)
                _end(job, "cancelled")
            self._tell_places()

    def cancel(self, job: Job) -> None:
        """Stop a job; one that waits ends at once."""
        job.cancel()
        self.sweep()

    def _tell_places(self) -> None:
        running = any(job.status == "running" for job in self._jobs.values())
        for place, job in enumerate(self._waiting):
            ahead = place + running
            others = "1 other job runs first" if ahead == 1 else f"{ahead} other jobs run first"
            says = others if ahead else (self.model_says or "Starting")
            job.show({"place": ahead, "says": says})

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._must_load()):
                    self._changed.wait()
                if self._stopping:
                    return
            if self._must_load() or self.model_status == "failed":
                self._load_model()
            with self._changed:
                job = self._waiting.popleft() if self._waiting else None
                if job is not None:
                    job.show({"status": "running", "place": 0})
                self._tell_places()
            if job is not None:
                self._do(job)

    def _must_load(self) -> bool:
        return self.model_status == "asleep" and (self._wanted or bool(self._waiting))

    def _load_model(self) -> None:
        self.model_status, self.model_says = "loading", "Loading the model"
        with self._changed:
            self._tell_places()
        try:
            self._load()
        except BaseException as error:  # also what Rust's libraries raise: the thread goes on
            self.model_status, self.model_says = "failed", _sentence(error)
        else:
            self.model_status, self.model_says = "ready", ""

    def _do(self, job: Job) -> None:
        try:
            job.check()
            if self.model_status == "failed":
                _end(job, "failed", self.model_says)
                return
            job.work(job)
        except StoppedError:
            _end(job, "cancelled", "Stopped")
        except BaseException as error:
            # Work that was stopped may end in what its libraries make of that.
            if job.is_cancelled:
                _end(job, "cancelled", "Stopped")
            else:
                _end(job, "failed", _sentence(error))
        else:
            _end(job, "done")


def _end(job: Job, status: str, says: str = "") -> None:
    job.ended = time.monotonic()
    job.show({"status": status, "says": says})


def _sentence(error: BaseException) -> str:
    """Say what went wrong without a trace, which the terminal gets."""
    if isinstance(error, VlmflowError):
        return str(error)
    if is_out_of_memory(error):
        return "there is not enough memory for this; use a smaller picture or a shorter question"
    LOG.error("a job failed", exc_info=error)
    return "something went wrong inside vlmflow; the terminal it was started in says what"
