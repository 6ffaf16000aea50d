"""What the bundled model is trained on, and when: the second stage of its training as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """What conversations are made of for a number of training steps."""

    steps: int  # Training steps that it lasts
    captions: float  # Share of conversations that open with a caption
    details: float = 0.0  # Share of the other turns that ask for everything about one object
    places: float = 0.0  # Share of those turns that ask where an object stands
    # Share of those that ask about an object that is there, or one that often occurs with it
    doubts: float = 0.0
    axes: float = 0.0  # Share of those that compare the places of two objects along one axis
    # Shares of those that ask by letter which of four objects is there, or which option has the
    # very words of the question
    presences: float = 0.0
    names: float = 0.0
    reasoning: float = 0.45  # Share of reasoning among the questions that remain
    open: float = 0.0  # Share of reasoning questions asked without options and answered in words
    comparisons: bool = False  # Whether these include comparisons of two groups
    # Weights of two auxiliary losses on the projected image tokens: to read an object's words off
    # them with the output embedding, and all of its labels with heads of their own
    words: float = 0.0
    labels: float = 0.0
    # Weight of reading an object's place off its tokens: "left" or "right", "above" or "below"
    sides: float = 0.0
    centres: float = 0.0  # Weight of telling the token at an object's centre from its others
    # Weights of two auxiliary losses in the middle of the decoder: to read off the end of an option
    # what holds for it, and the right option's words off the place that the answer follows
    verdicts: float = 0.0
    hints: float = 0.0
    # Shares of turns that count, or ask for the object furthest to one side
    counts: float = 0.0
    extremes: float = 0.0
    # Weights of reading the number of objects of a group off the word that names the group, and the
    # place of an object off the word that names it
    mentions: float = 0.0
    spots: float = 0.0
    batch: int = 32  # Sequences of a step


@dataclass(frozen=True)
class Curriculum:
    """Lessons in their order."""

    lessons: tuple[Lesson, ...]
    rates: Mapping[int, float]  # Learning rate at some steps; straight lines between them
    # Whether the vision tower is trained first and goes on learning; else it is the bundled
    # model's, frozen
    own_tower: bool = True

    @property
    def steps(self) -> int:
        """Steps of all lessons."""
        return sum(lesson.steps for lesson in self.lessons)


# What objects are called and where they are first, each on its own image tokens; then comparisons,
# with the verdicts, numbers and places they need in the middle of the decoder; then letters; and
# captions once more.
LESSONS = (
    Lesson(
        1000, captions=0.25, details=0.3, places=0.1, doubts=0.1, axes=0.05, reasoning=0.2,
        open=1.0, words=0.3, labels=0.1, sides=0.3, centres=0.2,
    ),
    Lesson(
        800, captions=0.2, details=0.12, places=0.1, doubts=0.1, axes=0.15, presences=0.08,
        counts=0.06, reasoning=0.6, open=1.0, comparisons=True, words=0.3, labels=0.1, sides=0.3,
        centres=0.2, verdicts=1.0, hints=0.5, mentions=1.0,
    ),
    Lesson(
        1000, captions=0.2, details=0.05, places=0.08, doubts=0.05, axes=0.12, presences=0.03,
        counts=0.08, reasoning=0.85, open=0.85, comparisons=True, words=0.2, labels=0.1, sides=0.3,
        centres=0.2, verdicts=0.5, hints=0.5, mentions=1.0, spots=1.0, batch=24,
    ),
    Lesson(
        800, captions=0.15, details=0.03, places=0.03, doubts=0.05, axes=0.05, presences=0.04,
        names=0.05, counts=0.08, reasoning=0.88, open=0.45, comparisons=True, words=0.2, labels=0.1,
        sides=0.3, centres=0.2, verdicts=0.5, hints=1.0, mentions=1.0, spots=0.5, batch=24,
    ),
    Lesson(
        600, captions=0.2, details=0.03, places=0.02, doubts=0.05, names=0.05, counts=0.08,
        reasoning=0.86, open=0.4, comparisons=True, words=0.2, labels=0.1, sides=0.2, centres=0.2,
        verdicts=0.2, hints=1.0, mentions=1.0, spots=0.3, batch=24,
    ),
    Lesson(
        200, captions=0.25, details=0.04, places=0.02, doubts=0.05, counts=0.08, reasoning=0.78,
        open=0.2, comparisons=True, words=0.1, labels=0.1, sides=0.1, centres=0.1, verdicts=0.2,
        hints=0.5, mentions=0.5, spots=0.2, batch=24,
    ),
    Lesson(
        800, captions=0.25, details=0.03, places=0.01, doubts=0.04, counts=0.1, extremes=0.15,
        reasoning=0.75, open=0.2, comparisons=True, words=0.1, labels=0.1, sides=0.1, centres=0.1,
        verdicts=0.2, hints=0.5, mentions=0.5, spots=0.2, batch=24,
    ),
    Lesson(
        750, captions=0.7, details=0.03, places=0.01, doubts=0.04, counts=0.1, extremes=0.15,
        reasoning=0.75, open=0.2, comparisons=True, words=0.1, labels=0.1, sides=0.1, centres=0.1,
        verdicts=0.2, hints=0.5, mentions=0.5, spots=0.2, batch=24,
    ),
)  # fmt: skip
_RATES = {
    0: 0.0, 100: 1.5e-3, 1000: 1.1e-3, 1800: 8e-4, 3600: 7e-4, 4200: 6e-4, 5200: 5.4545e-5,
    5250: 4e-4, 5950: 0.0,
}  # fmt: skip

# The ablation: what can be learnt in little time where nothing inside the decoder is supervised.
# Image tokens are still asked for their object's words before the decoder reads them.
_ANSWERS_ONLY = (
    Lesson(
        1600, captions=0.1, details=0.1, places=0.0, doubts=0.1, reasoning=0.0, words=0.3, batch=16,
    ),
)  # fmt: skip

CURRICULA = {
    "scenes-llava": Curriculum(LESSONS, _RATES),
    "answers-only": Curriculum(
        _ANSWERS_ONLY, {0: 0.0, 100: 1.2e-3, 1100: 1e-3, 1600: 0.0}, own_tower=False
    ),
}
"""By name."""
