"""One sample of a study of faithfulness: answered, measured, stored, or taken from the store."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmflow.errors import InputError
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.studies.batching.ahead import Prepared, Preparer, prepare
from vlmflow.studies.faithfulness.cost import costs
from vlmflow.studies.faithfulness.maps import explained
from vlmflow.studies.faithfulness.measurements import (
    Appearing,
    Faithfulness,
    Layers,
    agreement_with,
    layer_differences,
    measure_maps,
)
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.studies.faithfulness.store import StoredRecord, pack, record_id, unpack
from vlmflow.studies.samples import StoredSample, failure_reason, stored_sample
from vlmflow.studies.store import Store
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.trust.passes import Passes

Found = tuple[str, bytes | None]
"""What a measurement comes to: JSON, and arrays."""


@dataclass(frozen=True)
class Kept:
    """A measurement as it is stored, and the sample it belongs to."""

    sample: TaskSample
    stored: StoredSample
    record: StoredRecord

    @property
    def ids(self) -> tuple[str, str]:
        """Ids of both, for the record of a study."""
        return self.stored.id, self.record.id


@dataclass(frozen=True)
class _LookedUp:
    """A sample, the id of its measurement, and that where it is stored and did not fail."""

    sample: TaskSample
    stored: StoredSample
    name: str
    record: StoredRecord | None


Measure = Callable[[_LookedUp, Prompt], Found]
"""Measures a sample, whose prompt carries its answer."""


class Measuring:
    """Measures samples of one task with one model, each purpose of each sample once.

    Parameters
    ----------
    vlm, task, signals, settings
        What is measured.
    identity : str
        The model's.
    store : Store, optional
        Where measurements are kept; None: nowhere.
    """

    def __init__(
        self,
        vlm: LVLM,
        task: Task,
        signals: Mapping[str, Signal],
        settings: FaithfulnessSettings,
        *,
        identity: str,
        store: Store | None,
    ) -> None:
        self.vlm, self.task, self.signals, self.settings = vlm, task, signals, settings
        self.identity, self.store = identity, store
        # What memory holds is learned once for all samples, of each replacement by itself: removing
        # tokens takes other passes than showing pictures.
        self.passes = {name: Passes(settings.batch, vlm.device) for name in settings.shown}
        self.preparer = Preparer(vlm)
        self.appears = {"regions": settings.regions}

    @property
    def shared(self) -> dict[str, Any]:
        """What every measurement depends on; of the batch, what was asked for.

        How much "auto" was differs between machines, and changes the last digits alone.
        """
        return {
            "signals": {name: signal.fingerprint() for name, signal in self.signals.items()},
            "batch": self.settings.batch,
            "low_memory": self.settings.low_memory,
            "seed": self.settings.seed,
            "length": self.task.max_new_tokens,
        }

    def of(self, signals: Mapping[str, Signal]) -> Measuring:
        """Return one that measures other signals, and knows what this one has learned."""
        other = copy.copy(self)
        other.signals = signals
        return other

    def about(self, split: str, sample: TaskSample) -> Kept:
        """Say what every signal's maps are: label, colour, source, whether one for all layers."""

        def measure(item: _LookedUp, prompt: Prompt) -> Found:
            flow = explained(
                self.vlm,
                prompt,
                item.sample.question,
                self.signals,
                per_token=False,
                low_memory=self.settings.low_memory,
            )
            return json.dumps({name: flow.map_info(name).to_json() for name in self.signals}), None

        return self._once(split, sample, "about", {}, measure)

    def layers(
        self, split: str, samples: Iterable[TaskSample], tried: Mapping[str, Sequence[int | None]]
    ) -> Iterator[Kept]:
        """Measure insertion minus deletion at every layer that is tried, sample by sample."""

        def measure(item: _LookedUp, prompt: Prompt) -> Found:
            differences = layer_differences(
                self.vlm,
                prompt,
                item.sample.question,
                {name: self.signals[name] for name in tried},
                tried,
                self._appearing(item, prompt),
            )
            return json.dumps(differences), None

        more = self.appears | {
            "layers": dict(tried),
            "replacement": self.settings.shown[0],
            "steps": self.settings.count,
        }
        return self._each(split, samples, "layers", lambda _: more, measure)

    def maps(self, split: str, samples: Iterable[TaskSample], layers: Layers) -> Iterator[Kept]:
        """Measure every map, and every control, sample by sample."""

        def measure(item: _LookedUp, prompt: Prompt) -> Found:
            appearing = self._appearing(item, prompt)
            measured = measure_maps(self.vlm, prompt, item.sample, self.signals, layers, appearing)
            return pack(measured)

        more = self.appears | {
            "layers": dict(layers),
            "replacements": self.settings.shown,
            "steps": self.settings.count,
        }
        return self._each(split, samples, "maps", lambda own: more | {"box": own.box}, measure)

    def drawn(self, kept: Kept, layers: Layers, stage: str) -> Kept:
        """Compare the maps of the model as it is now, with drawn weights, with those it had.

        ``kept`` is what :meth:`maps` gave; the answer stays, though drawn weights give another.
        """
        trained = _unpacked(kept)

        def measure(_item: _LookedUp, prompt: Prompt) -> Found:
            agreement = agreement_with(
                self.vlm,
                prompt,
                kept.sample.question,
                self.signals,
                layers,
                dict(zip(trained.maps, trained.values, strict=True)),
                low_memory=self.settings.low_memory,
            )
            return json.dumps(agreement), None

        more = self._of_drawn(kept, layers, stage)
        return self._once("test", kept.sample, "drawn", more, measure, answer=trained.ids)

    def has_drawn(self, kept: Kept, layers: Layers, stage: str) -> bool:
        """Say whether what :meth:`drawn` would give is stored."""
        if self.store is None:
            return False
        name = self._id(kept.stored, "drawn", self._of_drawn(kept, layers, stage))
        record = self.store.get(StoredRecord, [name]).get(name)
        return record is not None and record.failure is None

    def _of_drawn(self, kept: Kept, layers: Layers, stage: str) -> dict[str, Any]:
        return {"layers": dict(layers), "answer": _unpacked(kept).ids, "stage": stage}

    def cost(self, split: str, sample: TaskSample) -> Kept:
        """Measure what every signal costs."""

        def measure(_item: _LookedUp, prompt: Prompt) -> Found:
            measured = costs(
                self.vlm,
                prompt,
                sample.question,
                self.signals,
                low_memory=self.settings.low_memory,
            )
            return json.dumps(measured), None

        return self._once(split, sample, "cost", {}, measure)

    def _each(
        self,
        split: str,
        samples: Iterable[TaskSample],
        purpose: str,
        more: Callable[[TaskSample], Mapping[str, Any]],
        measure: Measure,
    ) -> Iterator[Kept]:
        """Take each sample's measurement from the store, or make it; the next is prepared then."""

        def look_up(sample: TaskSample) -> _LookedUp:
            return self._look_up(split, sample, purpose, more(sample))

        def prepared(item: _LookedUp) -> Prepared | None:
            return self.preparer.prepare(item.sample) if item.record is None else None

        for item, ready in self.preparer.ahead(prepared, map(look_up, samples)):
            yield self._kept(item, ready, measure, None)

    def _once(
        self,
        split: str,
        sample: TaskSample,
        purpose: str,
        more: Mapping[str, Any],
        measure: Measure,
        *,
        answer: Sequence[int] | None = None,
    ) -> Kept:
        """Take a measurement from the store, or make it."""
        item = self._look_up(split, sample, purpose, more)
        ready = prepare(self.vlm, sample) if item.record is None else None
        return self._kept(item, ready, measure, answer)

    def _look_up(
        self, split: str, sample: TaskSample, purpose: str, more: Mapping[str, Any]
    ) -> _LookedUp:
        """Look for a measurement in the store; one that failed is to be tried again."""
        stored = stored_sample(self.task.name, split, sample)
        name, record = self._id(stored, purpose, more), None
        if self.store is not None:
            record = self.store.get(StoredRecord, [name]).get(name)
        failed = record is not None and record.failure is not None
        return _LookedUp(sample, stored, name, None if failed else record)

    def _kept(
        self,
        item: _LookedUp,
        prepared: Prepared | None,
        measure: Measure,
        answer: Sequence[int] | None,
    ) -> Kept:
        """Measure what is not stored.

        Whatever goes wrong with a sample becomes the reason of its failure: a study of hundreds of
        samples must not end at one broken picture.
        """
        record = item.record
        if record is None:
            assert prepared is not None
            try:
                prompt = self._answered(prepared, answer)
                plain, arrays, said = None, None, ""
                if prompt is not None:
                    plain, arrays = measure(item, prompt)
                    said = prompt.answer or ""
                record = StoredRecord(item.name, said, None, plain, arrays)
            except Exception as error:
                record = StoredRecord(item.name, None, failure_reason(error), None, None)
            if self.store is not None:
                self.store.add(*self.store.changed([item.stored]), record)
        return Kept(item.sample, item.stored, record)

    def _id(self, stored: StoredSample, purpose: str, more: Mapping[str, Any]) -> str:
        return record_id(self.identity, stored.id, purpose, self.shared | dict(more))

    def _answered(self, prepared: Prepared, answer: Sequence[int] | None) -> Prompt | None:
        """Put a question, and the model's own greedy answer; None where it ends at once."""
        if not prepared.sample.pictures:
            raise InputError("the sample has no picture, so no map can point anywhere")
        prompt = prepared.ready
        if answer is not None:
            return self.vlm.with_answer(prompt, answer)
        ids = self.vlm.generate_ids(prompt, max_new_tokens=self.task.max_new_tokens)
        return self.vlm.with_answer(prompt, ids) if ids else None

    def _appearing(self, item: _LookedUp, prompt: Prompt) -> Appearing:
        # The same draws for a sample whatever else is measured.
        entropy = [int(item.stored.id[:8], 16), self.settings.seed]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        question = item.sample.question
        return Appearing(self.vlm, prompt, question, self.settings, seed, self.passes)


def _unpacked(kept: Kept) -> Faithfulness:
    assert kept.record.plain is not None
    assert kept.record.arrays is not None
    return unpack(kept.record.plain, kept.record.arrays)
