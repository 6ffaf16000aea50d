"""Samples of one split and their answers, untouched and in other ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.studies.budget.measuring import Measuring
from vlmflow.studies.budget.rungs import Rung
from vlmflow.studies.budget.store import BudgetAnswer
from vlmflow.tasks.base import TaskSample
from vlmflow.truncation.truncation import Truncation

Answers = Sequence[BudgetAnswer | None]
"""One per sample; None where it could not be answered this way."""


class Counter:
    """Counts answers for whoever watches."""

    def __init__(self, show: Callable[[int, int], None] | None, total: int) -> None:
        self.show, self.total, self.done = show, total, 0

    def step(self) -> None:
        """Count one more answer."""
        self.done += 1
        if self.show is not None:
            self.show(self.done, self.total)


class AnsweredSplit:
    """Samples of a split that the untouched model answers, and those answers."""

    def __init__(
        self, name: str, samples: Sequence[TaskSample], measuring: Measuring, counter: Counter
    ) -> None:
        self.name, self.measuring, self.counter = name, measuring, counter
        self.samples: list[TaskSample] = []
        self.untouched: list[BudgetAnswer] = []
        for sample in samples:
            own = measuring.answer(name, sample, None)
            counter.step()
            if own is not None:
                self.samples.append(sample)
                self.untouched.append(own)
        if not self.samples:
            raise InputError(
                f"no {name} sample of {measuring.task.name} could be answered; the first: "
                f"{next(iter(measuring.failures), 'there is none')}"
            )

    def answers(self, rung: Rung) -> list[BudgetAnswer | None]:
        """Answer every sample at a budget."""
        answers = []
        for sample in self.samples:
            answers.append(self.measuring.answer(self.name, sample, rung))
            self.counter.step()
        return answers

    def truncated(self, policies: Sequence[Truncation]) -> list[BudgetAnswer | None]:
        """Answer every sample under its own truncation."""
        answers = []
        for sample, policy in zip(self.samples, policies, strict=True):
            answers.append(self.measuring.truncated(self.name, sample, policy))
            self.counter.step()
        return answers

    def changed(self, answers: Answers) -> npt.NDArray[np.bool_]:
        """Tell which answers are not the untouched model's; one that failed is not."""
        return np.array(
            [
                own is None or own.ids != before.ids
                for own, before in zip(answers, self.untouched, strict=True)
            ]
        )

    def scores(self, answers: Answers) -> list[float]:
        """Score answers; one that failed is an empty one."""
        texts = ["" if own is None else own.text for own in answers]
        return [float(score) for score in self.measuring.task.scores(self.samples, texts)]
