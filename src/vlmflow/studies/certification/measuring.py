"""Measuring samples for a certificate, each once: from the store, or anew and into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.lvlm.tokens import answer_text
from vlmflow.studies.batching.ahead import Prepared, Preparer
from vlmflow.studies.batching.batches import Batches, Work, windows
from vlmflow.studies.certification.findings import Run
from vlmflow.studies.certification.measurements import Measured, measure
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.studies.certification.store import StoredExits, exits_id, pack, unpack
from vlmflow.studies.samples import StoredSample, failure_reason, model_identity, stored_sample
from vlmflow.studies.store import Store
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

Pairs = list[tuple[TaskSample, Measured]]
"""Samples that could be measured, in order."""

LARGEST = "largest_batch"
"""Under which a store says how many samples were measured at once at most."""

_Row = tuple[str, str, bytes | None]
"""What is stored of a sample: its untouched answer, JSON, and arrays."""


@dataclass(frozen=True)
class _LookedUp:
    """A sample, the id of its measurement, and that where it is stored and did not fail."""

    sample: TaskSample
    stored: StoredSample
    name: str
    row: StoredExits | None


class Measuring:
    """Measures samples with one model, each once."""

    def __init__(
        self,
        vlm: LVLM,
        task: Task,
        signals: Mapping[str, ExitSignal],
        settings: CertifySettings,
        layers: Sequence[int],
        store: Store,
    ) -> None:
        self.vlm, self.task, self.signals, self.settings = vlm, task, signals, settings
        self.layers, self.store = layers, store
        self.identity = model_identity(vlm)
        self.batches = Batches(settings.batch, vlm.device)
        self.largest: int = store.read(LARGEST) or 1  # Samples at once at most, of all runs
        self.failures: list[str] = []

    def exits(self, split: str, samples: Sequence[TaskSample], show: Callable[[], None]) -> Pairs:
        """Measure every exit of some samples; those that fail are noted and left out."""
        options = {
            "layers": list(self.layers),
            "keeps": list(self.settings.keeps),
            "rank_by": Truncation(1, 1, self.settings.rank_by).ranking.fingerprint(),
            "signals": {name: signal.fingerprint() for name, signal in self.signals.items()},
            "length": self.task.max_new_tokens,
        }

        def work(batch: Sequence[Prepared]) -> list[_Row]:
            measured = measure(
                self.vlm,
                [prepared.ready for prepared in batch],
                self.layers,
                self.settings.amounts(),
                self.settings.rank_by,
                self.signals,
                self.task.max_new_tokens,
            )
            if len(batch) > self.largest:
                self.largest = len(batch)
                self.store.write(LARGEST, self.largest)
            return [(one.answers[0]["text"], *pack(one)) for one in measured]

        rows = self._each(split, samples, "exits", options, work, self.batches, show)
        return [
            (sample, unpack(row.plain, row.arrays))
            for sample, row in rows
            if row.plain is not None and row.arrays is not None
        ]

    def runs(self, policy: ExitPolicy, pairs: Pairs, show: Callable[[], None]) -> list[Run]:
        """Answer samples under a policy by ``generate``, and compare with their own answers."""
        options = {
            "policy": policy.to_json(),
            "code": policy.code(),
            "length": self.task.max_new_tokens,
        }

        def work(batch: Sequence[Prepared]) -> list[_Row]:
            with policy(self.vlm.model) as run:
                ids = self.vlm.generate_ids(batch[0].ready, max_new_tokens=self.task.max_new_tokens)
            text = answer_text(self.vlm.processor.tokenizer, ids)
            exit_layer = int(run.exit_layers[0])
            return [(text, json.dumps({"ids": ids, "text": text, "exit_layer": exit_layer}), None)]

        runs = []
        singly = Batches(1, self.vlm.device)  # as a prompt is answered that comes alone
        own_samples = [sample for sample, _ in pairs]
        rows = self._each("test", own_samples, "policy", options, work, singly, show)
        for (_, measured), (sample, row) in zip(pairs, rows, strict=True):
            if row.plain is None:
                continue
            own, then = measured.answers[0], json.loads(row.plain)
            loss = None
            if self.task.by_itself:
                scores = [self.task.score(sample, answer["text"]) for answer in (own, then)]
                loss = float(scores[0] - scores[1])
            changed = own["ids"] != then["ids"]
            runs.append(Run(sample.key, sample.group, then["exit_layer"], changed, loss))
        return runs

    def _each(
        self,
        split: str,
        samples: Sequence[TaskSample],
        purpose: str,
        options: Mapping[str, Any],
        work: Work[_Row],
        batches: Batches,
        show: Callable[[], None],
    ) -> list[tuple[TaskSample, StoredExits]]:
        """Take each sample's measurement from the store, or make it and put it there."""
        preparer = Preparer(self.vlm)

        def look_up(sample: TaskSample) -> _LookedUp:
            stored = stored_sample(self.task.name, split, sample)
            name = exits_id(self.identity, stored.id, purpose, options)
            row = self.store.get(StoredExits, [name]).get(name)
            failed = row is not None and row.failure is not None  # it is tried again
            return _LookedUp(sample, stored, name, None if failed else row)

        def prepare(window: list[_LookedUp]) -> dict[int, Prepared]:
            return {
                place: preparer.prepare(item.sample)
                for place, item in enumerate(window)
                if item.row is None
            }

        rows: list[tuple[TaskSample, StoredExits]] = []
        looked_up = windows(map(look_up, samples), batches.given)
        for window, prepared in preparer.ahead(prepare, looked_up):
            own = self._rows(window, prepared, work, batches, show)
            rows += [(item.sample, row) for item, row in zip(window, own, strict=True)]
            for item, row in zip(window, own, strict=True):
                if row.failure is not None:
                    self.failures.append(f"{item.sample.key}: {row.failure}")
        return rows

    def _rows(
        self,
        window: Sequence[_LookedUp],
        prepared: Mapping[int, Prepared],
        work: Work[_Row],
        batches: Batches,
        show: Callable[[], None],
    ) -> list[StoredExits]:
        """Measure what is lacking of a window; a study must not end at one broken picture."""
        rows: dict[int, StoredExits] = {}
        for place, item in enumerate(window):
            if item.row is not None:
                rows[place] = item.row
                show()
        lacking = list(prepared)
        for batch in batches.plan(list(prepared.values()), work):
            places = [lacking[number] for number in batch]
            outcomes = batches.run(work, [prepared[place] for place in places])
            for place, outcome in zip(places, outcomes, strict=True):
                name = window[place].name
                if isinstance(outcome, Exception):
                    rows[place] = StoredExits(name, None, failure_reason(outcome), None, None)
                else:
                    answer, plain, arrays = outcome
                    rows[place] = StoredExits(name, answer, None, plain, arrays)
            stored = self.store.changed([window[place].stored for place in places])
            self.store.add(*stored, *(rows[place] for place in places))
            for _ in places:
                show()
        return [rows[place] for place in range(len(window))]
