"""The four bundled tasks as tasks: generated, without end, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count as numbers

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import TASKS, Sample, mentions, sample
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.tasks.metrics.chair import Chair, chair

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
            scene_sample = sample(self.name, split, index)
            question = scene_sample.task_question
            yield TaskSample(
                key=f"{split}-{index}",
                pictures=(scene_sample.picture,),
                question=question.text,
                references=(question.answer,),
                choices=question.choices,
                box=question.box,
                group=question.subset or question.kind,
            )

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by the exact answer, or by the share of objects named."""
        if self.name == "scenes-caption":
            return self._chair([sample], [answer]).named
        return float(self._drawn_again(sample).accepts(answer))

    def summary(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Add CHAIR to captions; see :meth:`vlmflow.tasks.base.Task.summary`."""
        if self.name != "scenes-caption":
            return super().summary(samples, answers)
        score = self._chair(samples, answers)
        return {self.metric: score.named, "CHAIRi": score.chair_i, "CHAIRs": score.chair_s}

    def _chair(self, samples: Sequence[TaskSample], captions: Sequence[str]) -> Chair:
        return chair(captions, [self._drawn_again(sample).objects for sample in samples], mentions)

    def _drawn_again(self, task_sample: TaskSample) -> Sample:
        """Draw the sample again, for its scene's objects and its answer."""
        split, index = task_sample.key.rsplit("-", 1)
        return sample(self.name, split, int(index))
