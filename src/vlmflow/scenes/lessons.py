"""What the bundled model is taught, and when: the second stage of its training as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """What conversations are made of for a number of training steps.

    Attributes
    ----------
    steps
        How long the lesson lasts.
    length
        Positions of every sequence: a fixed shape, with no padding to speak of.
    captions, descriptions
        Shares of conversations that open with a caption, or with a full description.
    details
        Share of the other turns that ask for everything about one object.
    places
        Share of those that ask where an object stands.
    doubts
        Share of those that ask for an object that is there, or one that often goes with those.
    axes
        Share of those that compare the places of two objects along one axis.
    presences, names
        Shares of those that ask by letter which of four objects is there, or which option has the
        very words of the question.
    counts
        Share of those that count.
    reasoning
        Share of reasoning among the questions that remain.
    open
        Share of reasoning questions asked without options and answered in words.
    comparisons
        Whether comparisons of two groups are among these, too.
    words, labels
        Weights of two auxiliary losses on the projected image tokens: to read an object's words
        off them with the output embedding, and all of its labels with heads of their own.
    digits
        Whether the digits of its number are among these words.
    sides, slope, logistic
        Weight of reading its place off them, as "left" or "right" and "above" or "below", how
        steeply these words follow the place, and whether along a logistic curve or a straight line.
    centres
        Weight of reading off them which one holds the centre of its object.
    verdicts, hints
        Weights of two auxiliary losses in the middle of the decoder: to read off the end of an
        option what holds for it, and the right option's words off the place that the answer
        follows.
    mentions
        Weight of reading the number of objects of a group off the word that names the group.
    """

    steps: int
    length: int
    captions: float
    descriptions: float = 0.0
    details: float = 0.0
    places: float = 0.0
    doubts: float = 0.0
    axes: float = 0.0
    presences: float = 0.0
    names: float = 0.0
    reasoning: float = 0.45
    open: float = 0.0
    comparisons: bool = False
    words: float = 0.0
    labels: float = 0.0
    digits: bool = False
    sides: float = 0.0
    slope: float = 1.0
    logistic: bool = False
    centres: float = 0.0
    verdicts: float = 0.0
    hints: float = 0.0
    counts: float = 0.0
    mentions: float = 0.0


# Words on image tokens first: attention by likeness, which text alone teaches, then finds them.
# Digits join them later; letters of options mean little before the answers themselves are known.
LESSONS = (
    Lesson(1400, 352, captions=0.3, descriptions=0.05, details=0.35, open=0.6, words=0.3),
    Lesson(400, 352, captions=0.25, descriptions=0.05, details=0.3, open=0.6, labels=0.3),
    Lesson(200, 352, captions=0.25, details=0.3, open=0.9, words=0.3, digits=True, labels=0.1),
    Lesson(
        400, 352, captions=0.2, details=0.2, places=0.12, open=0.9, comparisons=True, words=0.3,
        digits=True, labels=0.1,
    ),
    Lesson(
        400, 352, captions=0.2, details=0.12, places=0.15, open=0.85, comparisons=True, words=0.3,
        digits=True, labels=0.1, sides=0.3,
    ),
    Lesson(
        400, 352, captions=0.2, details=0.1, places=0.12, doubts=0.12, open=0.9, comparisons=True,
        words=0.2, digits=True, labels=0.1, sides=0.3, slope=2.0,
    ),
    Lesson(
        800, 352, captions=0.25, details=0.08, places=0.15, doubts=0.06, open=0.9,
        comparisons=True, words=0.2, digits=True, labels=0.1, sides=0.5, slope=2.0,
    ),
    Lesson(
        600, 352, captions=0.15, details=0.04, places=0.08, doubts=0.03, axes=0.2, presences=0.08,
        reasoning=0.85, open=1.0, comparisons=True, words=0.2, digits=True, labels=0.1, sides=0.3,
        slope=2.0, logistic=True, centres=0.1, verdicts=0.3,
    ),
    Lesson(
        400, 352, captions=0.15, details=0.03, places=0.03, doubts=0.03, axes=0.1, presences=0.1,
        names=0.15, reasoning=0.9, open=0.85, comparisons=True, words=0.2, digits=True, labels=0.1,
        sides=0.3, slope=2.0, logistic=True, centres=0.1, verdicts=1.0,
    ),
    Lesson(
        200, 352, captions=0.15, details=0.02, places=0.02, doubts=0.03, axes=0.04, presences=0.05,
        reasoning=0.92, open=0.6, comparisons=True, words=0.2, digits=True, labels=0.1, sides=0.3,
        slope=2.0, logistic=True, centres=0.2, verdicts=1.0,
    ),
    Lesson(
        800, 352, captions=0.12, details=0.02, places=0.02, doubts=0.03, axes=0.03, presences=0.03,
        names=0.06, reasoning=0.92, open=0.5, comparisons=True, words=0.2, digits=True, labels=0.1,
        sides=0.3, slope=2.0, logistic=True, centres=0.2, verdicts=0.5, hints=1.0,
    ),
    Lesson(
        600, 352, captions=0.12, details=0.02, places=0.02, doubts=0.03, axes=0.03, presences=0.03,
        names=0.05, reasoning=0.92, open=0.45, comparisons=True, words=0.2, digits=True, labels=0.1,
        sides=0.3, slope=2.0, logistic=True, centres=0.2, verdicts=0.5, hints=1.0,
    ),
    Lesson(
        600, 352, captions=0.12, details=0.02, doubts=0.03, names=0.03, counts=0.15, reasoning=0.92,
        open=0.4, comparisons=True, words=0.2, digits=True, labels=0.1, sides=0.2, slope=2.0,
        logistic=True, centres=0.2, verdicts=0.2, hints=1.0, mentions=1.0,
    ),
    Lesson(
        1000, 352, captions=0.25, details=0.03, places=0.02, doubts=0.05, counts=0.08,
        reasoning=0.82, open=0.2, comparisons=True, words=0.1, digits=True, labels=0.1, sides=0.1,
        slope=2.0, logistic=True, centres=0.1, verdicts=0.2, hints=0.5, mentions=0.5,
    ),
)  # fmt: skip
STEPS = sum(lesson.steps for lesson in LESSONS)
# Learning rate of the second stage at some steps; straight lines between them.
RATES = {
    0: 0.0,
    100: 1.5e-3,
    1400: 1.0667e-3,
    1800: 1.0334e-3,
    3200: 5.51e-4,
    3300: 7.5e-4,
    7200: 7e-4,
    STEPS: 0.0,
}
