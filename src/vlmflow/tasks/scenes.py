"""The four bundled tasks as tasks: generated, without end, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count as numbers

from vlmflow.errors import InputError
from vlmflow.scenes.scoring import is_right, score_captions
from vlmflow.scenes.tasks import TASKS, Sample, sample
from vlmflow.tasks.base import Task, TaskSample, check_split

DESCRIPTIONS = {
    "scenes-reasoning": "multiple choice about coloured shapes, as ScienceQA",
    "scenes-existence": "yes/no: is an object in the picture, as POPE",
    "scenes-reading": "reading a printed number, as TextVQA",
    "scenes-caption": "naming all objects, as CHAIR scores it",
}
"""One line about each bundled task."""


def metric_name(name: str) -> str:
    """Return what a bundled task's score is."""
    return "objects named" if name == "scenes-caption" else "accuracy"


class ScenesTask(Task):
    """One of ``scenes-reasoning``, ``scenes-existence``, ``scenes-reading``, ``scenes-caption``.

    Parameters
    ----------
    name : str
        Which one.

    Raises
    ------
    InputError
        If there is none of that name.
    """

    def __init__(self, name: str) -> None:
        if name not in TASKS:
            raise InputError(f"unknown task {name!r}; the bundled tasks are {', '.join(TASKS)}")
        self.name = name
        self.metric = metric_name(name)

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Draw samples; see :meth:`vlmflow.tasks.base.Task.samples`."""
        check_split(split)
        for index in numbers() if count is None else range(count):
            one = sample(self.name, split, index)
            asked = one.asked
            yield TaskSample(
                key=f"{split}-{index}",
                pictures=(one.picture,),
                question=asked.text,
                references=(asked.answer,),
                choices=asked.choices,
                box=asked.box,
                group=asked.subset or asked.kind,
            )

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by the exact answer, or by the share of objects named."""
        known = self._known(sample)
        if self.name == "scenes-caption":
            return score_captions([known], [answer]).named
        return float(is_right(known, answer))

    def summary(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Add CHAIR to captions; see :meth:`vlmflow.tasks.base.Task.summary`."""
        if self.name != "scenes-caption":
            return super().summary(samples, answers)
        found = score_captions([self._known(one) for one in samples], answers)
        return {self.metric: found.named, "CHAIRi": found.chair_i, "CHAIRs": found.chair_s}

    def _known(self, one: TaskSample) -> Sample:
        """Draw the scene again, whose objects captions are scored with."""
        split, index = one.key.rsplit("-", 1)
        return sample(self.name, split, int(index))
