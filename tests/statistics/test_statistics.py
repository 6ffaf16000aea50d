"""Intervals cover what they claim to cover, by simulation and by worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from vlmflow.statistics import bootstrap
from vlmflow.statistics.bootstrap import mean_interval, resamples, sample_draws
from vlmflow.statistics.intervals import mean_estimate, paired_difference, wilson_interval

TRIALS = 1500


def coverage(truth, draw):
    """Share of simulated studies whose interval holds the truth."""
    rng = np.random.default_rng(0)
    estimates = [draw(rng) for _ in range(TRIALS)]
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("count", [20, 100])
def test_intervals_of_shares_cover(share, count):
    def draw(rng):
        return mean_estimate(rng.random(count) < share, draws=1, seed=0)

    # Wilson's coverage swings about 95 % with n and the share; TRIALS leave 0.6 points of noise.
    assert 0.92 < coverage(share, draw) <= 1


def test_a_share_has_wilsons_interval():
    estimate = mean_estimate([1.0] * 81 + [0.0] * 182, draws=1, seed=0)
    # Newcombe 1998 (Statistics in Medicine 17:857), table I: 81 of 263.
    assert estimate.value == pytest.approx(81 / 263)
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_intervals_of_graded_scores_cover():
    def draw(rng):
        return mean_estimate(rng.beta(8, 2, 80), draws=300, seed=int(rng.integers(1 << 30)))

    assert 0.92 < coverage(0.8, draw) < 0.97


def clustered(rng, pictures, each, spread):
    """Right and wrong answers whose chance of being right depends on the picture."""
    chance = rng.beta(0.8 * spread, 0.2 * spread, pictures)
    right = rng.random((pictures, each)) < chance[:, None]
    names = [f"picture {number}" for number in range(pictures) for _ in range(each)]
    return right.ravel().astype(float), names


def test_samples_of_one_picture_are_not_taken_as_independent():
    def together(rng):
        scores, names = clustered(rng, 60, 6, 1.0)
        return mean_estimate(scores, names, draws=300, seed=int(rng.integers(1 << 30)))

    def apart(rng):
        scores, _ = clustered(rng, 60, 6, 1.0)
        return mean_estimate(scores, draws=1, seed=0)

    assert 0.91 < coverage(0.8, together) < 0.98
    assert coverage(0.8, apart) < 0.8  # what the clusters are for


@pytest.mark.parametrize("count", [20, 50, 200])
@pytest.mark.parametrize(("lost", "won"), [(0.0, 0.0), (0.02, 0.02), (0.1, 0.02), (0.3, 0.2)])
def test_intervals_of_paired_differences_cover(count, lost, won):
    def draw(rng):
        chance = rng.random(count)
        base = np.where(chance < lost, 1.0, np.where(chance < lost + won, 0.0, 1.0))
        cut = np.where(chance < lost, 0.0, np.where(chance < lost + won, 1.0, 1.0))
        return paired_difference(cut, base)

    assert 0.93 < coverage(won - lost, draw) <= 1


def test_intervals_of_graded_paired_differences_cover():
    def draw(rng):
        base = rng.beta(8, 2, 60)
        return paired_difference(np.clip(base - 0.1 * rng.random(60), 0, 1), base)

    assert 0.93 < coverage(-0.05, draw) <= 1


def test_paired_differences_of_clusters_cover():
    def draw(rng):
        pictures, each = 60, 5
        hurt = rng.random(pictures) < 0.2  # removal hurts all questions about some pictures
        lost = (rng.random((pictures, each)) < np.where(hurt, 0.8, 0.0)[:, None]).ravel()
        names = [f"p{number}" for number in range(pictures) for _ in range(each)]
        return paired_difference(1.0 - lost, np.ones(pictures * each), names)

    assert 0.92 < coverage(-0.16, draw) < 0.98


def test_a_paired_difference_is_bonett_and_prices():
    """By hand: n = 50, 8 lost, 2 won -> (1 + 2) and (1 + 8) of 52."""
    base = [1.0] * 8 + [0.0] * 2 + [1.0] * 40
    cut = [0.0] * 8 + [1.0] * 2 + [1.0] * 40
    won, lost = 3 / 52, 9 / 52
    spread = 1.959964 * np.sqrt((won + lost - (won - lost) ** 2) / 52)
    difference = paired_difference(cut, base)
    assert difference.value == pytest.approx(-6 / 50)
    assert difference.low == pytest.approx(won - lost - spread, abs=1e-9)
    assert difference.high == pytest.approx(won - lost + spread, abs=1e-9)


def test_no_difference_in_few_samples_is_not_certainty():
    few, many = (paired_difference([1.0] * n, [1.0] * n) for n in (10, 1000))
    assert few.value == many.value == 0
    assert few.low < -0.1
    assert -0.01 < many.low < 0


def test_clusters_of_one_change_nothing():
    rng = np.random.default_rng(1)
    scores, base = rng.random(30), rng.random(30)
    alone = paired_difference(scores, base)
    named = paired_difference(scores, base, [str(number) for number in range(30)])
    assert (alone.low, alone.high) == pytest.approx((named.low, named.high))
    empty = paired_difference(scores, base, [""] * 30)
    assert (alone.low, alone.high) == pytest.approx((empty.low, empty.high))


def test_all_right_about_few_pictures_is_not_certainty():
    names = [f"picture {number // 6}" for number in range(60)]
    estimate = mean_estimate([1.0] * 60, names, draws=50, seed=0)
    assert (estimate.value, estimate.high) == pytest.approx((1.0, 1.0))
    assert estimate.low == pytest.approx(mean_estimate([1.0] * 10, draws=1, seed=0).low)


def test_one_picture_says_nothing_about_others():
    scores = [0.0, 1.0, 1.0, 0.0] * 25
    alike = ["a", "a", "b", "b"] * 25
    for clusters, low in ((["a"] * 100, 0.055), (alike, 0.0945)):  # Wilson's 0.5 of 1, 1 of 2
        estimate = mean_estimate(scores, clusters, draws=200, seed=0)
        assert (estimate.value, round(estimate.low, 4)) == (0.5, pytest.approx(low, abs=5e-4))
        assert estimate.high == pytest.approx(1 - estimate.low)
    alone = paired_difference(scores, [0.0] * 100, ["a"] * 100)
    assert (alone.value, alone.low, alone.high) == (0.5, -1.0, 1.0)
    assert paired_difference(scores, [0.0] * 100).low > 0.38


def test_wilson_interval_has_known_values():
    # Wilson (1927), as tabulated for 8 successes in 10 trials.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(0, 20)
    assert low == 0.0
    assert high == pytest.approx(0.1611, abs=5e-4)


def test_a_bootstrap_draws_the_same_samples_at_once_as_one_after_another():
    rng = np.random.default_rng(3)
    expected = [rng.integers(199, size=199).tolist() for _ in range(20)]
    assert resamples(199, 20, 3).tolist() == expected


def test_the_bootstrap_of_a_mean_by_hand():
    values = np.array([[0.0, 1.0], [2.0, 5.0], [4.0, 0.0]])
    means = np.array([values[picked].mean(0) for picked in resamples(3, 100, 0)])
    low, high = mean_interval(values, None, 100, 0)
    for column in range(2):
        ranked = np.sort(means[:, column])
        # NumPy's linear quantile of 100 draws: between the 3rd and 4th, the 97th and 98th.
        assert low[column] == pytest.approx(ranked[2] + 0.475 * (ranked[3] - ranked[2]))
        assert high[column] == pytest.approx(ranked[96] + 0.525 * (ranked[97] - ranked[96]))


def test_means_taken_together_are_those_of_every_draw(monkeypatch):
    """A few draws at a time, the last ones fewer: the same to the last bit."""
    monkeypatch.setattr(bootstrap, "VALUES_AT_ONCE", 7 * 90)
    values = np.random.default_rng(0).normal(size=(30, 3))
    means = [values[numbers].mean(0) for numbers in resamples(30, 50, 1)]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_array_equal(mean_interval(values, None, 50, 1), [low, high])


def test_pictures_are_drawn_whole():
    """Four copies of every sample, kept together, say as much as one of each."""
    values = np.random.default_rng(0).random((12, 3))
    pictures = [f"{number}.png" for number in range(12) for _ in range(4)]
    alone = mean_interval(values, None, 300, 5)
    together = mean_interval(values.repeat(4, axis=0), pictures, 300, 5)
    np.testing.assert_allclose(together, alone)
    apart = mean_interval(values.repeat(4, axis=0), None, 300, 5)
    assert (apart[1] - apart[0] < 0.7 * (alone[1] - alone[0])).all()  # what clusters are for
    draws = sample_draws(5, ["a", "", "a", "", "b"], 200, 1)
    for draw in draws:  # both samples of "a", or none
        counts = np.bincount(draw, minlength=5)
        assert counts[0] == counts[2]
    assert np.array_equal(sample_draws(6, ["", "a"] + [""] * 4, 9, 2), resamples(6, 9, 2))


def test_equal_scores_above_one_have_an_interval():
    """Two captions alike: CIDEr may give each of them more than 1."""
    estimate = mean_estimate([2.5, 2.5], draws=200, seed=0)
    low, high = wilson_interval(2, 2)
    assert (estimate.value, estimate.low, estimate.high) == (2.5, 2.5 * low, 2.5 * high)
