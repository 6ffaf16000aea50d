"""The bundled task about short clips: generated, without end, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as numbers

from vlmflow.lvlm.videos import Video
from vlmflow.scenes.clips import clip_sample
from vlmflow.scenes.tasks import CLIPS
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.tasks.metrics.choices import chosen_letter


class ClipsTask(Task):
    """Questions about :mod:`vlmflow.scenes.clips`, for models that take videos."""

    name = CLIPS
    metric = "accuracy"

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Draw samples; see :meth:`vlmflow.tasks.base.Task.samples`."""
        check_split(split)
        for index in numbers() if count is None else range(count):
            drawn = clip_sample(split, index)
            yield TaskSample(
                key=f"{split}-{index}",
                pictures=(Video(drawn.clip.frames(), drawn.clip.seconds),),
                question=drawn.question.text,
                references=(drawn.question.answer,),
                choices=drawn.question.choices,
                group=drawn.question.kind,
            )

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by the option that is meant."""
        return float(chosen_letter(answer, sample.choices) in sample.references)
