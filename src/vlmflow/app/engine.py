"""The app's model: loaded when it is first wanted, used by one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.app.exchange import Exchange
from vlmflow.app.jobs import Job, Work, Worker
from vlmflow.app.limits import Limits

if TYPE_CHECKING:
    from vlmflow.api import LVLM

# Imports of the model's side stand inside functions: the page is served before torch is there.


@dataclass(frozen=True)
class ModelChoice:
    """Which model, how it is loaded (as for :func:`vlmflow.load`), and with how much memory."""

    name: str
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    low_memory: bool = False  # As for :meth:`vlmflow.LVLM.explain`


class Engine:
    """The worker with its model, and the work it can do.

    Parameters
    ----------
    choice : ModelChoice
        The model.
    limits : Limits
        Of the queue.
    prepare : callable
        Called before the first import of the model's side.
    """

    def __init__(
        self, choice: ModelChoice, limits: Limits, prepare: Callable[[], None] = lambda: None
    ) -> None:
        self.choice, self._prepare = choice, prepare
        self._vlm: LVLM | None = None
        self._offers: dict[str, Any] = {}
        self.worker = Worker(self._load, limits.waiting, limits.unwatched_seconds)

    def about(self) -> dict[str, Any]:
        """Say which model this is, how far it is, and what can be chosen for it."""
        worker = self.worker
        about = {"model": self.choice.name, "status": worker.model_status}
        return {**about, "says": worker.model_says, "offers": self._offers or None}

    def asking(self, exchange: Exchange) -> Work:
        """Return the work of answering and explaining."""

        def work(job: Job) -> None:
            from vlmflow.app.work import ask

            ask(self._ready(), exchange, job, low_memory=self.choice.low_memory)

        return work

    def truncating(self, exchange: Exchange, wanted: Mapping[str, Any]) -> Work:
        """Return the work of answering with image tokens removed."""

        def work(job: Job) -> None:
            from vlmflow.app.work import truncate

            truncate(self._ready(), exchange, wanted, job)

        return work

    def removing(self, exchange: Exchange) -> Work:
        """Return the work of measuring a removal curve."""

        def work(job: Job) -> None:
            from vlmflow.app.work import remove

            remove(self._ready(), exchange, job)

        return work

    def testing(self, exchange: Exchange, wanted: Mapping[str, Any]) -> Work:
        """Return the work of testing a map."""

        def work(job: Job) -> None:
            from vlmflow.app.work import test

            test(self._ready(), exchange, wanted, job, low_memory=self.choice.low_memory)

        return work

    def report(self, exchange: Exchange) -> str:
        """Return the report of a measured answer as one page."""
        from vlmflow.reports.explain.page import report_page

        assert exchange.flow is not None
        return report_page(exchange.flow, exchange.regions)

    def _ready(self) -> LVLM:
        assert self._vlm is not None
        return self._vlm

    def _load(self) -> None:
        self._prepare()
        from vlmflow.api import load
        from vlmflow.app.work import offers

        choice = self.choice
        vlm = load(choice.name, device=choice.device, dtype=choice.dtype, revision=choice.revision)
        self._offers = offers(vlm)
        self._vlm = vlm
