"""The seam for metrics of data sets: a score per answer, and figures that need all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from vlmflow.tasks.base import TaskSample


class Metric(ABC):
    """How a data set's answers are scored."""

    name: str
    """What :meth:`scores` give on average."""

    by_itself: bool = True
    """Whether one answer can be scored without the others."""

    @abstractmethod
    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer, 0 (wrong) to 1 (right)."""

    def scores(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> list[float]:
        """Score every answer."""
        return [self.score(*pair) for pair in zip(samples, answers, strict=True)]

    def figures(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return what is reported beside the mean score; nothing, unless overridden."""
        del samples, answers
        return {}
