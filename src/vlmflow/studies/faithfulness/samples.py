"""One sample of a study of faithfulness: answered, measured, stored, or taken from the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmflow.errors import InputError
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
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
        self.shared = {
            "signals": {name: signal.fingerprint() for name, signal in signals.items()},
            "batch": settings.batch,
            "low_memory": settings.low_memory,
            "seed": settings.seed,
            "length": task.max_new_tokens,
        }
        self.appears = {"regions": settings.regions}

    def about(self, split: str, sample: TaskSample) -> Kept:
        """Say what every signal's maps are: label, colour, source, whether one for all layers."""

        def measure(_stored: StoredSample, prompt: Prompt) -> Found:
            flow = explained(
                self.vlm,
                prompt,
                sample.question,
                self.signals,
                per_token=False,
                low_memory=self.settings.low_memory,
            )
            return json.dumps({name: flow.map_info(name).to_json() for name in self.signals}), None

        return self._once(split, sample, "about", {}, measure)

    def layers(
        self, split: str, sample: TaskSample, tried: Mapping[str, Sequence[int | None]]
    ) -> Kept:
        """Measure insertion minus deletion at every layer that is tried."""

        def measure(stored: StoredSample, prompt: Prompt) -> Found:
            differences = layer_differences(
                self.vlm,
                prompt,
                sample.question,
                {name: self.signals[name] for name in tried},
                tried,
                self._appearing(stored, sample, prompt),
            )
            return json.dumps(differences), None

        more = self.appears | {
            "layers": dict(tried),
            "replacement": self.settings.shown[0],
            "steps": self.settings.count,
        }
        return self._once(split, sample, "layers", more, measure)

    def maps(self, split: str, sample: TaskSample, layers: Layers) -> Kept:
        """Measure every map, and every control."""

        def measure(stored: StoredSample, prompt: Prompt) -> Found:
            appearing = self._appearing(stored, sample, prompt)
            return pack(measure_maps(self.vlm, prompt, sample, self.signals, layers, appearing))

        more = self.appears | {
            "layers": dict(layers),
            "replacements": self.settings.shown,
            "steps": self.settings.count,
            "box": sample.box,
        }
        return self._once(split, sample, "maps", more, measure)

    def drawn(self, kept: Kept, layers: Layers, stage: str) -> Kept:
        """Compare the maps of the model as it is now, with drawn weights, with those it had.

        ``kept`` is what :meth:`maps` gave; the answer stays, though drawn weights give another.
        """
        trained = _unpacked(kept)

        def measure(_stored: StoredSample, prompt: Prompt) -> Found:
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

        def measure(_stored: StoredSample, prompt: Prompt) -> Found:
            measured = costs(
                self.vlm,
                prompt,
                sample.question,
                self.signals,
                low_memory=self.settings.low_memory,
            )
            return json.dumps(measured), None

        return self._once(split, sample, "cost", {}, measure)

    def _once(
        self,
        split: str,
        sample: TaskSample,
        purpose: str,
        more: Mapping[str, Any],
        measure: Callable[[StoredSample, Prompt], Found],
        *,
        answer: Sequence[int] | None = None,
    ) -> Kept:
        """Take a measurement from the store, or measure it; one that failed is tried again.

        Whatever goes wrong with a sample becomes the reason of its failure: a study of hundreds of
        samples must not end at one broken picture.
        """
        stored = stored_sample(self.task.name, split, sample)
        name = self._id(stored, purpose, more)
        if self.store is not None:
            record = self.store.get(StoredRecord, [name]).get(name)
            if record is not None and record.failure is None:
                return Kept(sample, stored, record)
        try:
            prompt = self._answered(sample, answer)
            plain, arrays, said = None, None, ""
            if prompt is not None:
                plain, arrays = measure(stored, prompt)
                said = prompt.answer or ""
            record = StoredRecord(name, said, None, plain, arrays)
        except Exception as error:
            record = StoredRecord(name, None, failure_reason(error), None, None)
        if self.store is not None:
            self.store.add(*self.store.changed([stored]), record)
        return Kept(sample, stored, record)

    def _id(self, stored: StoredSample, purpose: str, more: Mapping[str, Any]) -> str:
        return record_id(self.identity, stored.id, purpose, self.shared | dict(more))

    def _answered(self, sample: TaskSample, answer: Sequence[int] | None) -> Prompt | None:
        """Put a question, and the model's own greedy answer; None where it ends at once."""
        if not sample.pictures:
            raise InputError("the sample has no picture, so no map can point anywhere")
        prompt = self.vlm.prepare(sample.pictures, sample.question)
        if answer is not None:
            return self.vlm.with_answer(prompt, answer)
        ids = self.vlm.generate_ids(prompt, max_new_tokens=self.task.max_new_tokens)
        return self.vlm.with_answer(prompt, ids) if ids else None

    def _appearing(self, stored: StoredSample, sample: TaskSample, prompt: Prompt) -> Appearing:
        # The same draws for a sample whatever else is measured.
        entropy = [int(stored.id[:8], 16), self.settings.seed]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return Appearing(self.vlm, prompt, sample.question, self.settings, seed)


def _unpacked(kept: Kept) -> Faithfulness:
    assert kept.record.plain is not None
    assert kept.record.arrays is not None
    return unpack(kept.record.plain, kept.record.arrays)
