"""Answering samples at a budget, or truncated at its cost, each once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlmflow.errors import InputError
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.resolution import with_image_settings
from vlmflow.lvlm.tokens import answer_text
from vlmflow.studies.budget.rungs import Rung
from vlmflow.studies.budget.store import BudgetAnswer, StoredAnswer, answer_id
from vlmflow.studies.samples import failure_reason, model_identity, stored_sample
from vlmflow.studies.store import Store
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.truncation.truncation import Truncation


class Measuring:
    """Answers samples with one model; what the store has is not answered again."""

    def __init__(self, vlm: LVLM, task: Task, store: Store) -> None:
        self.vlm, self.task, self.store = vlm, task, store
        self.identity = model_identity(vlm)
        self.failures: list[str] = []
        self._at: dict[str, LVLM] = {}

    def model_at(self, rung: Rung | None) -> LVLM:
        """Return the model with a budget's settings; None: as it was given."""
        if rung is None:
            return self.vlm
        if rung.name not in self._at:
            self._at[rung.name] = with_image_settings(self.vlm, rung.settings)
        return self._at[rung.name]

    def prompt(self, sample: TaskSample, rung: Rung | None = None) -> Prompt:
        """Prepare a sample at a budget; InputError where it shows a video."""
        prompt = self.model_at(rung).prepare(sample.pictures, sample.question)
        if prompt.layout.frames:  # whose tokens no setting here would change
            raise InputError("a budget is one of pictures, and this sample shows a video")
        return prompt

    def answer(self, split: str, sample: TaskSample, rung: Rung | None) -> BudgetAnswer | None:
        """Answer a sample at a budget; None where that failed, which is noted."""
        way = {"settings": {} if rung is None else rung.settings}
        return self._once(split, sample, way, lambda: self._answered(sample, rung, None))

    def truncated(
        self, split: str, sample: TaskSample, truncation: Truncation
    ) -> BudgetAnswer | None:
        """Answer a sample as the model was given, truncated; None where that failed."""
        way = {"truncation": truncation.to_json(), "ranking": truncation.ranking.fingerprint()}
        return self._once(split, sample, way, lambda: self._answered(sample, None, truncation))

    def _answered(
        self, sample: TaskSample, rung: Rung | None, truncation: Truncation | None
    ) -> BudgetAnswer:
        vlm = self.model_at(rung)
        prompt = self.prompt(sample, rung)
        ids = vlm.generate_ids(
            prompt, max_new_tokens=self.task.max_new_tokens, truncation=truncation
        )
        text = answer_text(vlm.processor.tokenizer, ids)
        return BudgetAnswer(ids, text, prompt.layout.image_positions.size, len(prompt.layout))

    def _once(
        self,
        split: str,
        sample: TaskSample,
        way: Mapping[str, Any],
        work: Callable[[], BudgetAnswer],
    ) -> BudgetAnswer | None:
        """Take an answer from the store, or make it and put it there."""
        stored = stored_sample(self.task.name, split, sample)
        name = answer_id(self.identity, stored.id, {**way, "length": self.task.max_new_tokens})
        row = self.store.get(StoredAnswer, [name]).get(name)
        if row is None or row.answer is None:  # what failed is tried again
            try:
                row = StoredAnswer(name, work().to_json(), None)
            except Exception as error:  # a study must not end at one broken picture
                row = StoredAnswer(name, None, failure_reason(error))
            self.store.add(*self.store.changed([stored]), row)
        if row.answer is None:
            self.failures.append(f"{sample.key}: {row.failure}")
            return None
        return BudgetAnswer.from_json(row.answer)
