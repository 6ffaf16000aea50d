"""Figures over all samples: equal to the metrics' own, with intervals; and the rule of verdicts."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vlmflow.reproductions.figures import FIGURES, Measured, measure
from vlmflow.reproductions.verdicts import OUTSIDE, UNKNOWN, WITHIN, change_verdict, verdict
from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference
from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.chair import chair
from vlmflow.tasks.metrics.coco_objects import coco_mentions
from vlmflow.tasks.metrics.mme import Mme
from vlmflow.tasks.metrics.pope import YesNo


def sample(number, right, group="", cluster=""):
    return TaskSample(f"test-{number}", (), "Is it?", right, group=group, cluster=cluster)


def questions(count=240):
    """Two questions to a picture, and answers of which some are long, wrong or neither."""
    draw = random.Random(3)
    groups = ("existence", "OCR", "code_reasoning")
    samples = [
        sample(i, (("yes", "no")[i % 2],), groups[i // 2 % 3], f"picture {i // 2}")
        for i in range(count)
    ]
    words = ["Yes", "No", "yes, there is", "There is not.", "NO", "maybe"]
    return samples, [draw.choice(words) for _ in samples]


def value_of(name, task, samples, answers, untouched=None):
    counts = FIGURES[name].counts(task, samples, answers)
    before = None if untouched is None else FIGURES[name].counts(task, samples, untouched)
    return measure(FIGURES[name], counts, before, [one.cluster for one in samples], 0)


def test_yes_and_no_are_read_as_popes_script_reads_them():
    samples, answers = questions()
    own = YesNo().figures(samples, answers)
    for name, key in (("POPE F1", "official F1"), ("POPE accuracy", "official accuracy")):
        measured = value_of(name, None, samples, answers)
        assert measured.estimate.value == pytest.approx(100 * own[key])
        assert measured.estimate.low < measured.estimate.value < measured.estimate.high


def test_mme_is_the_metrics_own_sum():
    samples, answers = questions()
    measured = value_of("MME perception", Mme(), samples, answers)
    perception = Mme().figures(samples, answers)["perception"]
    assert measured.estimate.value == pytest.approx(perception)
    assert 0 < measured.estimate.low < perception < measured.estimate.high


def test_chair_is_the_metrics_own():
    draw, things = random.Random(1), ["cat", "dog", "car", "pizza", "bench"]
    samples = [sample(i, (f"A {draw.choice(things)} there.", "A cat.")) for i in range(150)]
    answers = [f"A {draw.choice(things)} and a {draw.choice(things)}." for _ in samples]
    objects = [{x for text in one.references for x in coco_mentions(text)} for one in samples]
    own = chair(answers, objects, coco_mentions)
    for name, share in (("CHAIRi", own.chair_i), ("CHAIRs", own.chair_s)):
        measured = value_of(name, None, samples, answers, answers)
        assert measured.estimate.value == pytest.approx(100 * share)
        assert measured.change.value == 0
        assert measured.count == 150


def test_means_have_the_intervals_of_every_study():
    samples, answers = questions()
    truncated = ["No"] * 100 + answers[100:]
    measured = value_of("accuracy", YesNo(), samples, truncated, answers)
    own, before = YesNo().scores(samples, truncated), YesNo().scores(samples, answers)
    clusters = [one.cluster for one in samples]
    for estimate, wanted in (
        (measured.estimate, mean_estimate(own, clusters, draws=2000, seed=0)),
        (measured.change, paired_difference(own, before, clusters)),
    ):
        assert estimate.value == pytest.approx(100 * wanted.value)
        assert (estimate.low, estimate.high) == pytest.approx((100 * wanted.low, 100 * wanted.high))


def test_pictures_are_drawn_whole():
    """Four copies of each question are no more evidence than one."""
    samples, answers = questions(60)
    four = [sample(i, one.references, one.group, str(i % 60)) for i, one in enumerate(samples * 4)]
    alone = [sample(i, one.references, one.group) for i, one in enumerate(samples * 4)]
    wide, narrow = (value_of("POPE F1", None, group, answers * 4).estimate
                    for group in (four, alone))  # fmt: skip
    assert wide.value == narrow.value
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.15)


def test_changes_of_ratios_are_paired():
    samples, answers = questions()
    truncated = ["Yes" if i < 3 else answer for i, answer in enumerate(answers)]
    measured = value_of("POPE F1", None, samples, truncated, answers)
    spread = np.ptp([measured.change.low, measured.change.high])
    assert spread < 0.3 * (measured.estimate.high - measured.estimate.low)


@pytest.mark.parametrize(
    ("printed", "low", "high", "count", "wanted"),
    [
        (85.0, 84.0, 86.0, 2000, WITHIN),
        (84.0, 84.0, 86.0, 2000, WITHIN),
        (83.9, 84.0, 86.0, 2000, OUTSIDE),
        (50.0, 84.0, 96.0, 200, OUTSIDE),  # wide, and still far away
        (85.0, 79.9, 90.1, 200, UNKNOWN),  # within, as nearly anything
        (50.0, 84.0, 86.0, 99, UNKNOWN),  # too few
        (0.0, 0.0, 0.0, 2000, UNKNOWN),  # draws that cannot differ
    ],
)
def test_the_rule_of_verdicts(printed, low, high, count, wanted):
    estimate = Estimate((low + high) / 2, low, high)
    assert verdict(printed, Measured(estimate, None, count), 100) == wanted


def test_a_change_takes_a_narrower_interval():
    level, change = Estimate(85, 82, 88), Estimate(0.5, -2.5, 3.5)
    measured = Measured(level, change, 1000)
    assert verdict(84.7, measured, 100) == WITHIN
    assert change_verdict(0.8, measured, 100) == UNKNOWN
    assert change_verdict(-3, measured, 100) == OUTSIDE
