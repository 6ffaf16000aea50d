"""Measuring samples for a certificate, each once: from the store, or anew and into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.lvlm.tokens import answer_text
from vlmflow.studies.batching.ahead import Prepared, Preparer
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
    from vlmflow.lvlm.prompt import Prompt

Pairs = list[tuple[TaskSample, Measured]]
"""Samples that could be measured, in order."""


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

        def work(prompt: Prompt) -> tuple[str, str, bytes | None]:
            measured = measure(
                self.vlm,
                prompt,
                self.layers,
                self.settings.amounts(),
                self.settings.rank_by,
                self.signals,
                self.task.max_new_tokens,
            )
            return measured.answers[0]["text"], *pack(measured)

        pairs = []
        for sample, row in self._each(split, samples, "exits", options, work):
            show()
            if row.plain is not None and row.arrays is not None:
                pairs.append((sample, unpack(row.plain, row.arrays)))
        return pairs

    def runs(self, policy: ExitPolicy, pairs: Pairs, show: Callable[[], None]) -> list[Run]:
        """Answer samples under a policy by ``generate``, and compare with their own answers."""
        options = {
            "policy": policy.to_json(),
            "code": policy.code(),
            "length": self.task.max_new_tokens,
        }

        def work(prompt: Prompt) -> tuple[str, str, None]:
            with policy(self.vlm.model) as run:
                ids = self.vlm.generate_ids(prompt, max_new_tokens=self.task.max_new_tokens)
            text = answer_text(self.vlm.processor.tokenizer, ids)
            exit_layer = int(run.exit_layers[0])
            plain = json.dumps({"ids": list(ids), "text": text, "exit_layer": exit_layer})
            return text, plain, None

        runs = []
        rows = self._each("test", [sample for sample, _ in pairs], "policy", options, work)
        for (_, measured), (sample, row) in zip(pairs, rows, strict=True):
            show()
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
        work: Callable[[Prompt], tuple[str, str, bytes | None]],
    ) -> Iterator[tuple[TaskSample, StoredExits]]:
        """Take each sample's measurement from the store, or make it and put it there."""
        preparer = Preparer(self.vlm)

        def look_up(sample: TaskSample) -> _LookedUp:
            stored = stored_sample(self.task.name, split, sample)
            name = exits_id(self.identity, stored.id, purpose, options)
            row = self.store.get(StoredExits, [name]).get(name)
            failed = row is not None and row.failure is not None  # it is tried again
            return _LookedUp(sample, stored, name, None if failed else row)

        def prepare(item: _LookedUp) -> Prepared | None:
            return preparer.prepare(item.sample) if item.row is None else None

        for item, prepared in preparer.ahead(prepare, map(look_up, samples)):
            row = item.row
            if row is None:
                assert prepared is not None
                row = self._measured(item.name, prepared, work)
                self.store.add(*self.store.changed([item.stored]), row)
            if row.failure is not None:
                self.failures.append(f"{item.sample.key}: {row.failure}")
            yield item.sample, row

    @staticmethod
    def _measured(
        name: str, prepared: Prepared, work: Callable[[Prompt], tuple[str, str, bytes | None]]
    ) -> StoredExits:
        """Measure one sample; a study must not end at one broken picture."""
        try:
            answer, plain, arrays = work(prepared.ready)
        except Exception as error:
            return StoredExits(name, None, failure_reason(error), None, None)
        return StoredExits(name, answer, None, plain, arrays)
