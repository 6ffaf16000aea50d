"""Tests of a promised risk: exact values, validity in simulation, and a wrong variant caught."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from vlmflow.statistics.risk_control import (
    betting_p_value,
    binomial_p_value,
    last_accepted,
    least_trials,
    most_events,
)

DRAWS, LEVEL = 2000, 0.1


def exact(events: int, trials: int, share: Fraction) -> float:
    return float(
        sum(
            math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(events + 1)
        )
    )


@pytest.mark.parametrize(
    ("events", "trials", "share"),
    [(0, 1, "1/2"), (3, 40, "1/20"), (11, 250, "1/20"), (7, 7, "9/10")],
)
def test_the_binomial_probability_is_exact(events, trials, share):
    expected = exact(events, trials, Fraction(share))
    assert binomial_p_value(events, trials, float(Fraction(share))) == pytest.approx(expected)


def test_no_share_and_every_share():
    assert binomial_p_value(0, 100, 0.0) == 1
    assert binomial_p_value(99, 100, 1.0) == 0
    assert binomial_p_value(100, 100, 1.0) == 1


@pytest.mark.parametrize(
    ("trials", "share", "level", "events"),
    [(200, 0.05, 0.1, 5), (500, 0.05, 0.1, 18), (1000, 0.05, 0.05, 38), (1000, 0.01, 0.1, 5)],
)
def test_how_many_events_are_allowed(trials, share, level, events):
    assert most_events(trials, share, level) == events


def test_the_least_number_of_samples():
    assert least_trials(0.05, 0.1) == 45
    for share, level in ((0.05, 0.1), (0.02, 0.05), (0.5, 0.1), (0.9, 0.1)):
        least = least_trials(share, level)
        assert most_events(least, share, level) == 0
        assert least == 1 or most_events(least - 1, share, level) is None
    assert least_trials(0.0, 0.1) is None


def test_a_bet_of_one_sample_by_hand():
    """No loss, 5 % allowed: the bet is the smaller of sqrt(2 log(10) / .25) and .75 / .475."""
    mean = 1.05 / 2
    bet = min(math.sqrt(2 * math.log(10) / 0.25), 0.75 / (1 - mean))
    assert betting_p_value([0.0], 0.05, 0.1) == pytest.approx(1 / (1 + bet * (mean - 0.5)))
    assert betting_p_value([], 0.05, 0.1) == 1
    with pytest.raises(ValueError, match="outside"):
        betting_p_value([1.5], 0.05, 0.1)


def rejections(p_values: np.ndarray) -> int:
    return int((p_values <= LEVEL).sum())


def too_often(wrong: int) -> bool:
    """Whether an exact one-sided test at 1 % says that it happens in more than 10 % of draws."""
    return 1 - exact_below(wrong) < 0.01


def exact_below(wrong: int) -> float:
    return binomial_p_value(wrong - 1, DRAWS, LEVEL) if wrong else 0.0


# The least favourable risks: just what is allowed, by losses alone and with gains beside them.
@pytest.mark.parametrize(("harm", "gain"), [(0.05, 0.0), (0.08, 0.03), (0.5, 0.45)])
def test_a_bet_is_wrong_no_more_often_than_promised(harm, gain):
    draws = np.random.default_rng(3).random((DRAWS, 150))
    losses = (draws < harm).astype(float) - (draws > 1 - gain)
    wrong = rejections(np.array([betting_p_value(row, 0.05, LEVEL) for row in losses]))
    assert not too_often(wrong)


def test_bets_find_what_is_safe():
    draws = np.random.default_rng(4).random((300, 300))
    losses = (draws < 0.01).astype(float) - (draws > 0.99)
    accepted = np.mean([betting_p_value(row, 0.02, LEVEL) <= LEVEL for row in losses])
    assert accepted > 0.5  # Hoeffding's bound accepts none of them


def test_policies_are_accepted_up_to_the_first_failure():
    assert last_accepted([0.01, 0.09, 0.2, 0.001], 0.1) == 1
    assert last_accepted([0.2, 0.0], 0.1) is None
    assert last_accepted([], 0.1) is None
    assert last_accepted([0.0, 0.0], 0.1) == 1


def policies_of_rising_risk() -> tuple[np.ndarray, np.ndarray]:
    """Risks of four policies, the third just above 5 %, and p-values on the same samples."""
    risks, samples = np.array([0.005, 0.02, 0.0501, 0.09]), 200
    draws = np.random.default_rng(5).random((DRAWS, samples, 1))
    events = (draws < risks).sum(1)
    table = np.array([binomial_p_value(count, samples, 0.05) for count in range(samples + 1)])
    return risks, table[events]


def test_the_deployed_policy_keeps_its_promise_and_a_wrong_choice_does_not():
    risks, p_values = policies_of_rising_risk()
    chosen = [last_accepted(row, LEVEL) for row in p_values]
    wrong = sum(index is not None and risks[index] > 0.05 for index in chosen)
    assert not too_often(wrong)
    assert np.mean([index is not None for index in chosen]) > 0.5  # it does certify something
    # The fault of a published implementation: the first policy that fails is deployed.
    failing = [0 if index is None else min(index + 1, len(risks) - 1) for index in chosen]
    assert too_often(sum(risks[index] > 0.05 for index in failing))
