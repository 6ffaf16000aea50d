"""What is called safe with 95 % confidence is unsafe in at most one study of twenty."""

from __future__ import annotations

import numpy as np
import pytest

from vlmflow.statistics.loss_tests import ALPHA, holm, least_samples, loss_p_value

MOST = 0.03


def losses(rng, samples, lost, won, pictures=None):
    """Changes of score: -1 with one probability, +1 with another."""
    drawn = rng.random(samples)
    if pictures is not None:  # all of a picture's samples are alike
        drawn = np.repeat(rng.random(pictures), samples // pictures)
    return np.where(drawn < lost, -1.0, np.where(drawn < lost + won, 1.0, 0.0))


def p_value(changes, clusters=None):
    return loss_p_value(changes + 1.0, np.ones(len(changes)), MOST, clusters)


@pytest.mark.parametrize(
    ("samples", "lost", "won"),
    [(200, 0.035, 0.0), (200, 0.0301, 0.0), (300, 0.06, 0.025), (400, 0.0401, 0.01),
     (400, 0.2301, 0.2)],
)  # fmt: skip
def test_none_of_18_unsafe_truncations_is_called_safe(samples, lost, won):
    """All lose more than the 3 points that are allowed; the smallest p-value of all must pass."""
    rng, studies = np.random.default_rng(samples), 300
    wrong = uncorrected = 0
    for _ in range(studies):
        values = [p_value(losses(rng, samples, lost, won)) for _ in range(18)]
        wrong += any(holm(values))
        uncorrected += min(values) <= ALPHA
    # 95 %, and twice the standard error of 300 runs.
    assert wrong / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)
    assert uncorrected > wrong  # what the correction is for


@pytest.mark.parametrize(("samples", "pictures"), [(200, None), (600, 200)])
def test_one_truncation_is_tested_at_its_level(samples, pictures):
    rng, studies = np.random.default_rng(7), 2000
    names = None if pictures is None else [str(n) for n in np.repeat(range(pictures), 3)]
    wrong = sum(
        p_value(losses(rng, samples, 0.0301, 0.0, pictures), names) <= ALPHA for _ in range(studies)
    )
    assert wrong / studies <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / studies)


def test_a_truncation_without_loss_is_found():
    rng, studies = np.random.default_rng(3), 100
    shown = 0
    for _ in range(studies):
        unsafe = [p_value(losses(rng, 400, 0.1, 0.0)) for _ in range(17)]
        shown += holm([*unsafe, p_value(losses(rng, 400, 0.002, 0.002))])[-1]
    assert shown >= 0.9 * studies


def test_p_values_by_hand():
    # No loss in 100 samples: 0.97 ** 100; two losses: three terms of the binomial.
    assert p_value(np.zeros(100)) == pytest.approx(0.97**100)
    two = np.array([-1.0, -1.0] + [0.0] * 98)
    terms = 0.97**100 + 100 * 0.03 * 0.97**99 + 4950 * 0.03**2 * 0.97**98
    assert p_value(two) == pytest.approx(terms)
    # Of one picture's samples nothing follows.
    assert p_value(np.zeros(100), ["a"] * 100) >= 0.5
    # Where gains and losses abound, the Wald interval decides.
    many = np.array([-1.0] * 30 + [1.0] * 40 + [0.0] * 130)
    centre = 10 / 202
    error = np.sqrt(70 + 2 - 202 * centre**2) / 202
    from statistics import NormalDist

    assert p_value(many) == pytest.approx(1 - NormalDist().cdf((centre + MOST) / error), rel=1e-6)


def test_holm_is_that_of_the_worked_example():
    """Holm (1979): the smallest against alpha / m, the next against alpha / (m - 1), ..."""
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.02, 0.02, 0.02], 0.05) == [False, False, False]
    assert holm([], 0.05) == []


@pytest.mark.parametrize(("most", "tests"), [(0.03, 1), (0.03, 18), (0.1, 5)])
def test_the_least_number_is_the_least(most, tests):
    least = least_samples(most, tests)
    for samples, passes in ((least, True), (least - 1, False)):
        value = loss_p_value([0.0] * samples, [0.0] * samples, most)
        assert (value <= ALPHA / tests) == passes
    assert least_samples(0.0, tests) is None
