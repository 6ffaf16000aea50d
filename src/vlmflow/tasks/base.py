"""The seam for data sets: samples, a score per answer, and figures over all of them.

To add one: write a file beside ``scenes.py`` with a :class:`Task` and add it to ``task`` in
``registry.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmflow.errors import InputError
from vlmflow.lvlm.chat import VisualSource

SPLITS = ("calibration", "test")
"""Settings are chosen on the first and reported on the second."""


@dataclass(frozen=True)
class TaskSample:
    """One question about pictures or videos.

    Parameters
    ----------
    key : str
        Names the sample within its task and split, the same in every run.
    pictures : tuple of pictures or videos
        Paths, PIL pictures, :class:`vlmflow.Video` or :class:`vlmflow.VideoFile`.
    question : str
        What is put to the model.
    references : tuple of str
        Right answers; several where any of them is right.
    choices : tuple of str
        Options of a multiple-choice question, in the order of their letters.
    box : tuple of 4 float, optional
        ``x0, y0, x1, y1`` in the first picture's pixels: where the answer is to be found.
    group : str
        Part of the task that the sample belongs to (a subset, a kind of question); may be empty.
    cluster : str
        The same for all samples about one picture, which are not independent of each other:
        intervals keep them together. Empty: the sample stands alone.
    """

    key: str
    pictures: tuple[VisualSource, ...]
    question: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    box: tuple[float, float, float, float] | None = None
    group: str = ""
    cluster: str = ""


class Task(ABC):
    """A data set with its metric."""

    name: str
    """What the command line calls it."""

    metric: str
    """What :meth:`scores` give on average."""

    by_itself: bool = True
    """Whether one answer can be scored without the others, as :meth:`score` does."""

    max_new_tokens: int = 64
    """Longest answer the metric needs."""

    @property
    def address(self) -> str:
        """What :func:`vlmflow.tasks.registry.find_task` finds it by, for a study read later."""
        return self.name

    @abstractmethod
    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Give the first ``count`` samples of a split, always the same ones.

        Parameters
        ----------
        split : str
            One of :data:`SPLITS`; they share no sample.
        count : int, optional
            None: all. A task that is generated has no end and needs a count.

        Raises
        ------
        InputError
            For an unknown split, or where the data cannot be read.
        """

    @abstractmethod
    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer between 0 (wrong) and 1 (right)."""

    def scores(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> list[float]:
        """Score every answer; a metric over a whole corpus (CIDEr) overrides this."""
        return [self.score(*pair) for pair in zip(samples, answers, strict=True)]

    def summary(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return the task's figures over all samples; the first is :attr:`metric`'s mean."""
        scores = self.scores(samples, answers)
        return {self.metric: sum(scores) / len(scores)} if scores else {}


def check_split(split: str) -> None:
    """Refuse a split that does not exist."""
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown; there are {' and '.join(SPLITS)}")
