"""Sign flips against all of them, and Holm's correction against its definition."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from vlmflow.statistics.loss_tests import holm
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value


def all_flips(sums):
    limit = abs(sum(sums)) - 1e-9
    flips = list(itertools.product((1, -1), repeat=len(sums)))
    return np.mean([abs(np.dot(signs, sums)) >= limit for signs in flips])


def test_sign_flips_by_trying_all():
    rng = np.random.default_rng(0)
    for count in (1, 3, 8):
        values = rng.normal(0.3, 1, count)
        assert sign_flip_p_value(values) == pytest.approx(all_flips(values))
    assert sign_flip_p_value([0.0, 0.0]) == 1
    assert sign_flip_p_value([1.0] * 8) == 2 / 2**8


def test_drawn_flips_agree_with_all_of_them():
    values = np.random.default_rng(1).normal(0.35, 1, 16)
    assert sign_flip_p_value(values, draws=20_000) == pytest.approx(all_flips(values), abs=0.01)
    assert sign_flip_p_value([1.0] * 40, draws=99) == 1 / 100


def test_clusters_flip_together():
    values = [0.4, 0.5, -0.2, 0.7, 0.6]
    clusters = ["a", "a", "", "b", "b"]
    assert sign_flip_p_value(values, clusters) == pytest.approx(all_flips([0.9, -0.2, 1.3]))
    # Three copies of every sample are no more evidence than one.
    assert sign_flip_p_value(values * 3, list("abcde") * 3) == sign_flip_p_value(values)


def test_false_alarms_are_as_rare_as_said():
    rng = np.random.default_rng(2)
    alarms = [sign_flip_p_value(rng.normal(0, 1, 12)) <= 0.05 for _ in range(200)]
    assert 0.01 <= np.mean(alarms) <= 0.09


def test_adjusted_p_values_decide_as_holm_does():
    assert holm_adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjusted([0.9, 0.5]) == [1.0, 1.0]
    draw = random.Random(4)
    for _ in range(100):
        values = [draw.random() ** 3 for _ in range(6)]
        alpha = draw.choice([0.01, 0.05, 0.2])
        assert [p <= alpha for p in holm_adjusted(values)] == holm(values, alpha)
