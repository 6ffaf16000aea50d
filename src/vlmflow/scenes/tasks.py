"""The four bundled tasks and their splits.

``scenes-reasoning`` mirrors ScienceQA, ``scenes-existence`` POPE, ``scenes-reading`` TextVQA and
``scenes-caption`` the captioning that CHAIR and CIDEr score. ``scenes-pointing`` asks about one
object whose box is known; maps are scored with it. ``scenes-grounding`` asks for such a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.scenes.generator import COLOURS, KINDS, Box, Scene, draw_scene, render
from vlmflow.scenes.questions import (
    EXISTENCE_SUBSETS,
    REASONING,
    Question,
    attribute,
    caption,
    existence,
    grounding,
    name,
    reading,
)

SPLITS = ("train", "calibration", "test")
TASKS = ("scenes-reasoning", "scenes-existence", "scenes-reading", "scenes-caption")
POINTING = "scenes-pointing"
GROUNDING = "scenes-grounding"
ALL_TASKS = (*TASKS, POINTING, GROUNDING)
CLIPS = "scenes-clips"
"""The task about short clips, which :mod:`vlmflow.scenes.clips` draws."""

_MENTION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")


@dataclass(frozen=True)
class Sample:
    """One picture with one question.

    Attributes
    ----------
    task, split, index
        Arguments of :func:`sample`.
    scene
        The ground truth of the picture.
    task_question
        The question with its kind, options and, where one object is asked about, its box.
    """

    task: str
    split: str
    index: int
    scene: Scene
    task_question: Question

    @property
    def picture(self) -> Image.Image:
        """The RGB picture, rendered anew on each access."""
        return render(self.scene)

    @property
    def question(self) -> str:
        """The question's text."""
        return self.task_question.text

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.task_question.answer

    @property
    def objects(self) -> set[tuple[str, str]]:
        """The ``(colour, kind)`` of every object in the picture, without doubles."""
        return {thing.category for thing in self.scene.objects}

    @property
    def regions(self) -> dict[str, Box]:
        """The box of every object, its number included, by a name that no other object shares."""
        categories = [thing.category for thing in self.scene.objects]
        return {
            f"the {name(thing)}": thing.whole_box
            for thing in self.scene.objects
            if categories.count(thing.category) == 1
        }

    def accepts(self, answer: str) -> bool:
        """Whether an answer is the right one, up to case, outer spaces and a full stop."""
        return answer.strip().rstrip(".").lower() == self.answer.strip().rstrip(".").lower()


def mentions(caption: str) -> list[tuple[str, str]]:
    """Return every ``(colour, kind)`` that a caption names, in its order."""
    return [(colour, kind) for colour, kind in _MENTION.findall(caption.lower())]


def scene_seed(task: str, split: str, index: int, attempt: int = 0) -> tuple[int, ...]:
    """Give a sample's scene its seed: no two splits and no two tasks ever share one."""
    names = (*TASKS, POINTING, "conversation", GROUNDING, CLIPS)
    return (SPLITS.index(split), names.index(task), index, attempt)


def sample(task: str, split: str = "test", index: int = 0) -> Sample:
    """Draw one sample of a task.

    Parameters
    ----------
    task
        One of :data:`ALL_TASKS`.
    split
        ``"train"``, ``"calibration"`` or ``"test"``; they never share a scene's seed.
    index
        Any integer >= 0; the same arguments always give the same sample.

    Raises
    ------
    InputError
        For an unknown task or split, or a negative index.
    """
    if task not in ALL_TASKS:
        raise InputError(f"unknown task {task!r}; the bundled tasks are {', '.join(ALL_TASKS)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if index < 0:
        raise InputError(f"index={index}, but samples are counted from 0")
    attempt = 0
    while True:
        seed = scene_seed(task, split, index, attempt)
        scene = draw_scene(seed)
        rng = np.random.default_rng(np.random.SeedSequence((*seed, 2)))
        question = _ask(task, scene, rng, index)
        if question is not None:
            return Sample(task, split, index, scene, question)
        attempt += 1  # this scene offers no such question


def samples(task: str, split: str = "test", count: int = 200) -> Iterator[Sample]:
    """Draw the first ``count`` samples of a task's split."""
    return (sample(task, split, index) for index in range(count))


def _ask(task: str, scene: Scene, rng: np.random.Generator, index: int) -> Question | None:
    if task == "scenes-reasoning":
        return REASONING[index % len(REASONING)](scene, rng)
    if task == "scenes-existence":
        subset = EXISTENCE_SUBSETS[index // 2 % len(EXISTENCE_SUBSETS)]
        return existence(scene, rng, present=index % 2 == 0, subset=subset)
    if task == "scenes-reading":
        return reading(scene, rng)
    if task == "scenes-caption":
        return caption(scene)
    if task == GROUNDING:
        return grounding(scene, rng)
    return (attribute if index % 2 == 0 else reading)(scene, rng)
