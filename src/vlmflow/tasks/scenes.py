"""The bundled tasks as tasks: generated, without end, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count as numbers

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import ALL_TASKS, GROUNDING, Sample, mentions, sample
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.tasks.metrics.boxes import intersection_over_union, read_box
from vlmflow.tasks.metrics.chair import Chair, chair
from vlmflow.tasks.metrics.choices import chosen_letter

DESCRIPTIONS = {
    "scenes-reasoning": "multiple choice about coloured shapes, as ScienceQA",
    "scenes-existence": "yes/no: is an object in the picture, as POPE",
    "scenes-reading": "reading a printed number, as TextVQA",
    "scenes-caption": "naming all objects, as CHAIR scores it",
    "scenes-pointing": "a colour, a kind or a number of one object whose box is known",
    "scenes-grounding": "an object's box in the answer; scenes-llava has not been taught it",
    "scenes-clips": "multiple choice about short clips: what moves, when, which way; for videos",
}
"""One line about each bundled task."""

_METRICS = {"scenes-caption": "objects named", GROUNDING: "mean IoU"}
ENOUGH = 0.5
"""IoU from which on a box is right, as referring expressions are scored."""


def metric_name(name: str) -> str:
    """Return what a bundled task's score is."""
    return _METRICS.get(name, "accuracy")


class ScenesTask(Task):
    """One of :data:`vlmflow.scenes.ALL_TASKS`.

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
        if name not in ALL_TASKS:
            raise InputError(f"unknown task {name!r}; the bundled tasks are {', '.join(ALL_TASKS)}")
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
        """Score by the exact answer, the option meant, the objects named, or the box's IoU."""
        if self.name == "scenes-caption":
            return self._chair([sample], [answer]).named
        if self.name == GROUNDING:
            return self._overlap(sample, answer)
        if sample.choices:
            return float(chosen_letter(answer, sample.choices) in sample.references)
        return float(self._drawn_again(sample).accepts(answer))

    def summary(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Add CHAIR to captions, and to boxes how many are right; see :meth:`Task.summary`."""
        if self.name == GROUNDING and samples:
            overlaps = self.scores(samples, answers)
            right = sum(overlap >= ENOUGH for overlap in overlaps) / len(overlaps)
            return {self.metric: sum(overlaps) / len(overlaps), "accuracy at IoU 0.5": right}
        if self.name != "scenes-caption":
            return super().summary(samples, answers)
        score = self._chair(samples, answers)
        return {self.metric: score.named, "CHAIRi": score.chair_i, "CHAIRs": score.chair_s}

    def _overlap(self, task_sample: TaskSample, answer: str) -> float:
        """IoU of the answer's box with the true one, both in hundredths of the central square."""
        drawn = self._drawn_again(task_sample)
        box, said = drawn.task_question.box, read_box(answer)
        if said is None or box is None:
            return 0.0
        x0, y0, x1, y1 = (100 * edge for edge in drawn.scene.in_square(box))
        return intersection_over_union(said, (x0, y0, x1, y1))

    def _chair(self, samples: Sequence[TaskSample], captions: Sequence[str]) -> Chair:
        return chair(captions, [self._drawn_again(sample).objects for sample in samples], mentions)

    def _drawn_again(self, task_sample: TaskSample) -> Sample:
        """Draw the sample again, for its scene's objects and its answer."""
        split, index = task_sample.key.rsplit("-", 1)
        return sample(self.name, split, int(index))
