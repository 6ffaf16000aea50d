"""Explaining the samples of a task, each once: read from its folder, or anew and into it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.errors import InputError
from vlmflow.explanation.answering import Answered, Asked, answered_together
from vlmflow.explanation.explain import BATCH, information_flow
from vlmflow.explanation.together import SharedMeasurement, measured_together
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.batch_size import Batch
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.verdict import verdict
from vlmflow.studies.batching.ahead import Prepared, Preparer, ahead
from vlmflow.studies.batching.batches import WINDOW, Batches, windows
from vlmflow.studies.explanations.answers import ExplainedAnswer
from vlmflow.studies.explanations.beside import Beside
from vlmflow.studies.samples import as_text, failure_reason, model_identity, stored_sample
from vlmflow.tasks.base import Task, TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

SAMPLE = "sample"
"""Setting of a result that says which sample, model and options it was measured with."""

Write = Callable[[InformationFlow, TaskSample, Path], None]
"""Writes report and numbers of one answer into its directory."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, eq=False)
class _LookedUp:
    """A sample, the name and mark of its result, and what is kept of one that is there."""

    sample: TaskSample
    name: str
    mark: str
    answer: ExplainedAnswer | None


_Window = list[_LookedUp]
"""Samples that are put into batches together; they are named by their places."""


def explained_together(
    vlm: LVLM, batch: Sequence[Prepared], options: ExplainOptions
) -> list[SharedMeasurement | InputError]:
    """Answer and measure samples in one batch; what is wrong with one alone is its result.

    Raises
    ------
    InputError, ModelError
        Whatever is wrong with the batch.
    """
    questions = [Asked(item.ready, item.sample.question) for item in batch]
    outcomes = answered_together(vlm, questions, options)
    answered = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
    measured = iter(measured_together(vlm, answered, options))
    return [next(measured) if isinstance(outcome, Answered) else outcome for outcome in outcomes]


class Explaining:
    """Explains samples with one model, those of similar length together.

    A result that is there is taken whatever batch it was measured in: what stood beside it changes
    its last digits (in half precision now and then an answer), and it says how many there were.
    """

    def __init__(
        self,
        vlm: LVLM,
        task: Task,
        options: ExplainOptions,
        beside: Beside,
        folder: Path,
        write: Write,
        *,
        batch: Batch,
    ) -> None:
        self.vlm, self.task, self.options, self.beside = vlm, task, options, beside
        self.folder, self.write = folder, write
        self.batch, self.batches = batch, Batches(batch, vlm.device)
        self.preparer = Preparer(vlm)
        identity = model_identity(vlm)
        self.depends_on = [identity, options.to_json(), *([beside.to_json()] if beside else [])]

    def split(self, split: str, count: int, show: Callable[[], None]) -> list[ExplainedAnswer]:
        """Explain the first samples of a split, in their order; ``show`` is told of each."""

        def prepare(window: _Window) -> dict[int, Prepared]:
            return {
                place: self.preparer.prepare(item.sample)
                for place, item in enumerate(window)
                if item.answer is None
            }

        answers: list[ExplainedAnswer] = []
        for window, prepared in self.preparer.ahead(prepare, self._windows(split, count)):
            answers += self._explained(window, prepared, show)
        return answers

    def _windows(self, split: str, count: int) -> Iterator[_Window]:
        """Look up what the folder holds of the samples of a split."""

        def look_up(numbered: tuple[int, TaskSample]) -> _LookedUp:
            number, sample = numbered
            name = f"{number:04d}-{_UNSAFE.sub('-', sample.key)[:60]}"
            stored = stored_sample(self.task.name, split, sample).id
            mark = hashlib.sha256(as_text([stored, *self.depends_on]).encode()).hexdigest()
            flow = _measured_before(self.folder / name, mark)
            answer = None if flow is None else self._answer(sample, name, flow)
            return _LookedUp(sample, name, mark, answer)

        numbered = enumerate(self.task.samples(split, count))
        for pairs in windows(ahead(look_up, numbered, WINDOW), self.batch):
            yield [item for _, item in pairs]

    def _explained(
        self, window: _Window, prepared: dict[int, Prepared], show: Callable[[], None]
    ) -> list[ExplainedAnswer]:
        """Explain what is lacking of a window."""

        def work(batch: Sequence[Prepared]) -> list[SharedMeasurement | InputError]:
            return explained_together(self.vlm, batch, self.options)

        answers: dict[int, ExplainedAnswer] = {}
        for place, item in enumerate(window):
            if item.answer is not None:
                answers[place] = item.answer
                show()
        lacking = list(prepared)
        for batch in self.batches.plan(list(prepared.values()), work):
            places = [lacking[number] for number in batch]
            outcomes = self.batches.run(work, [prepared[place] for place in places])
            for place, outcome in zip(places, outcomes, strict=True):
                answers[place] = self._finished(window[place], prepared[place], outcome)
                show()
        return [answers[place] for place in range(len(window))]

    def _finished(
        self, item: _LookedUp, prepared: Prepared, outcome: SharedMeasurement | Exception
    ) -> ExplainedAnswer:
        """Run what a sample does not share with others, and write its result."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            flow = information_flow(self.vlm, outcome, self.options)
            flow = self.beside.added_to(flow, self.vlm, prepared.ready, self.options)
        # Whatever goes wrong with one sample must not end the others.
        except Exception as error:
            reason = failure_reason(error)
            return ExplainedAnswer(item.sample, item.name, None, float("nan"), failure=reason)
        flow = dataclasses.replace(flow, settings={**flow.settings, SAMPLE: item.mark})
        self.write(flow, item.sample, self.folder / item.name)
        return self._answer(item.sample, item.name, flow)

    def _answer(self, sample: TaskSample, name: str, flow: InformationFlow) -> ExplainedAnswer:
        """Take what a list of answers says from a result; it is not scored yet."""
        words = verdict(flow)
        return ExplainedAnswer(
            sample,
            name,
            flow.answer,
            0.0,
            words.headline,
            words.picture,
            trust=self.beside.trust_words(flow),
            truncated=None if flow.truncated is None else flow.truncated.answer,
            batch=flow.settings.get(BATCH, 1),  # Results of earlier versions were made one by one.
        )


def _measured_before(directory: Path, mark: str) -> InformationFlow | None:
    """Read a result of the same sample, model and options, or None."""
    if not directory.is_dir():
        return None
    try:
        flow = InformationFlow.load(directory)
    except InputError:
        return None
    return flow if flow.settings.get(SAMPLE) == mark else None
