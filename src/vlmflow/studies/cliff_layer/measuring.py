"""Measuring the samples of a cliff study, each once: from the store, or anew and into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmflow.errors import ModelError
from vlmflow.removal.knockout import knockouts
from vlmflow.studies.batching.ahead import Prepared, Preparer, ahead
from vlmflow.studies.batching.batches import WINDOW, Batches, windows
from vlmflow.studies.cliff_layer.measurements import (
    SampleMeasurement,
    failed_measurement,
    measure_samples,
)
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.studies.cliff_layer.store import (
    StoredMeasurement,
    measurement_id,
    plan_name,
    sample_measurement,
    stored_measurement,
)
from vlmflow.studies.samples import StoredSample, model_identity, stored_sample
from vlmflow.studies.store import Store
from vlmflow.tasks.base import Task, TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

Measured = list[tuple[StoredSample, str, SampleMeasurement]]
"""Samples in order, with the ids of their measurements."""


@dataclass(frozen=True)
class _Window:
    """Samples that are put into batches together; samples are named by their places."""

    samples: list[TaskSample]
    stored: list[StoredSample]
    plan: list[list[int]] | None  # What makes a batch; None: not decided yet
    kept: dict[int, SampleMeasurement]  # Of the batches that the store holds as a whole

    @property
    def lacking(self) -> list[int]:
        """Those that are to be measured."""
        return [place for place in range(len(self.samples)) if place not in self.kept]


class Measuring:
    """Measures samples with one model, each once.

    What is measured depends, in its last digits, on what it is measured with. So a batch is stored
    as a whole, and which samples make one before any of them is run: a study that was ended goes
    on with the same batches.
    """

    def __init__(self, vlm: LVLM, task: Task, settings: CliffSettings, store: Store | None) -> None:
        self.vlm, self.task, self.settings, self.store = vlm, task, settings, store
        self.identity = model_identity(vlm)
        self.batches = Batches(settings.batch, vlm.device)
        self.preparer = Preparer(vlm)
        self.largest = 0  # Samples of the largest batch so far

    def split(self, split: str, count: int, show: Callable[[int], None]) -> Measured:
        """Measure the first samples of a split; ``show`` is told how many each time."""
        knockout = self.settings.knockout and split == "test"

        def prepare(window: _Window) -> dict[int, Prepared]:
            return {place: self.preparer.prepare(window.samples[place]) for place in window.lacking}

        measured: Measured = []
        looked_up = self._windows(split, count, knockout=knockout)
        for window, prepared in self.preparer.ahead(prepare, looked_up):
            measured += self._measured(window, prepared, show, knockout=knockout)
        return measured

    def _windows(self, split: str, count: int, *, knockout: bool) -> Iterator[_Window]:
        """Look up what the store holds of the samples of a split."""

        def hashed(sample: TaskSample) -> StoredSample:
            return stored_sample(self.task.name, split, sample)

        pairs_of_all = ahead(hashed, self.task.samples(split, count), WINDOW)
        for pairs in windows(pairs_of_all, self.settings.batch):
            samples, stored = [sample for sample, _ in pairs], [own for _, own in pairs]
            window = _Window(samples, stored, self._read_plan(stored), {})
            self._read_kept(window, window.plan or [], knockout=knockout)
            yield window

    def _measured(
        self,
        window: _Window,
        prepared: dict[int, Prepared],
        show: Callable[[int], None],
        *,
        knockout: bool,
    ) -> Measured:
        """Measure what is lacking of a window."""

        def work(batch: Sequence[Prepared]) -> list[SampleMeasurement]:
            return measure_samples(self.vlm, batch, self.task.max_new_tokens, knockout=knockout)

        plan = window.plan
        if plan is None:
            plan = self.batches.plan([prepared[place] for place in window.lacking], work)
            if self.store is not None:
                self.store.write(self._plan_name(window.stored), plan)
                self._read_kept(window, plan, knockout=knockout)
        measured: dict[int, tuple[StoredSample, str, SampleMeasurement]] = {}
        for batch in plan:
            self.largest = max(self.largest, len(batch))
            names = self._names(window, batch)
            new: list[StoredMeasurement] = []
            results = [window.kept[place] for place in batch if place in window.kept]
            if not results:
                given = [prepared[place] for place in batch]
                outcomes = zip(given, self.batches.run(work, given), strict=True)
                results = [
                    failed_measurement(item.sample, one) if isinstance(one, Exception) else one
                    for item, one in outcomes
                ]
                new = [stored_measurement(*pair) for pair in zip(names, results, strict=True)]
            stored = [window.stored[place] for place in batch]
            if self.store is not None:
                self.store.add(*self.store.changed(stored), *new)
            rows = zip(stored, names, results, strict=True)
            measured.update(zip(batch, rows, strict=True))
            show(len(batch))
        return [measured[place] for place in range(len(window.samples))]

    def _read_kept(self, window: _Window, plan: list[list[int]], *, knockout: bool) -> None:
        """Read the batches of which all is there.

        One with a failed sample is tried again, and one without the knockout that is wanted is
        measured anew: an answer is not stored as the tokens that it was measured by.
        """
        if self.store is None:
            return
        for batch in plan:
            names = self._names(window, batch)
            rows = self.store.get(StoredMeasurement, names)
            kept = {
                place: sample_measurement(window.samples[place], rows[name])
                for place, name in zip(batch, names, strict=True)
                if name in rows
            }
            if len(kept) == len(batch) and all(_is_whole(one, knockout) for one in kept.values()):
                window.kept.update(kept)

    def _names(self, window: _Window, batch: list[int]) -> list[str]:
        """Give the ids of the measurements of a batch."""
        ids = [window.stored[place].id for place in batch]
        length = self.task.max_new_tokens
        return [measurement_id(self.identity, own, ids, length) for own in ids]

    def _plan_name(self, stored: Sequence[StoredSample]) -> str:
        return plan_name(self.identity, [one.id for one in stored], self.settings.batch)

    def _read_plan(self, stored: Sequence[StoredSample]) -> list[list[int]] | None:
        if self.store is None:
            return None
        plan: list[list[int]] | None = self.store.read(self._plan_name(stored))
        return plan


def check_knockout(vlm: LVLM, task: Task) -> None:
    """Raise ModelError for a model without knockout, before it is found sample by sample."""
    for sample in task.samples("test", 1):
        try:
            knockouts(vlm, [vlm.prepare(sample.pictures, sample.question, "a")])
        except ModelError:
            raise
        except Exception:  # a broken picture, say: this sample's own failure
            return


def _is_whole(measurement: SampleMeasurement, knockout: bool) -> bool:
    """Tell whether nothing is left to measure of a sample."""
    if measurement.failure is not None:
        return False
    return not knockout or measurement.curve is None or measurement.knockout is not None
