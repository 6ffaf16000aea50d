"""A data set as published tables use it: the whole official split, under the paper's prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vlmflow.reproductions.published import PublishedData
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.tasks.hub.task import HubTask


class OfficialSplit(Task):
    """A data set of the hub whose ``test`` split is the official one, undivided.

    Nothing is chosen when a table is run again, so the third that is otherwise for calibration is
    added at the end; the first samples are those of the task. The ``calibration`` split, which a
    study cannot do without, is the first of them.
    """

    def __init__(self, task: HubTask, data: PublishedData) -> None:
        self._task, self._question = task, data.question
        self.name, self.metric, self.by_itself = task.name, task.metric, task.by_itself
        self.max_new_tokens = data.max_new_tokens or task.max_new_tokens

    @property
    def address(self) -> str:
        """That of the data set."""
        return self._task.address

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Give samples in their order; see :meth:`vlmflow.tasks.base.Task.samples`."""
        check_split(split)
        if split == "calibration":
            count = 1
        given = 0
        for part in ("test", "calibration"):
            if given == count or (part == "calibration" and self._task.data.calibration):
                return
            for sample in self._task.samples(part, None if count is None else count - given):
                given += 1
                yield sample if not self._question else replace(sample, question=self._question)

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by the data set's metric."""
        return self._task.score(sample, answer)

    def scores(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> list[float]:
        """Score by the data set's metric."""
        return self._task.scores(samples, answers)

    def summary(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return the data set's figures."""
        return self._task.summary(samples, answers)
