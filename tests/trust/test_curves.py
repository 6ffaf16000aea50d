"""Insertion and deletion of models that read one region: best order, worst, and none at all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.result.map_trust import Curves
from vlmflow.trust.curves import both_ways, measure_curves, picture_steps, token_steps
from vlmflow.trust.order import pixel_ranks, replayed
from vlmflow.trust.replacement import REPLACEMENTS, background

SIZE = 32
REGION = np.s_[4:12, 8:24]
"""An eighth of the picture."""


@pytest.fixture(scope="module")
def picture():
    values = np.random.default_rng(0).integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values)


def reads_a_region(picture):
    """A model that is as sure as the share of its region that is shown."""
    whole = np.asarray(picture)[REGION].astype(float)

    def score(pictures):
        seen = [(np.asarray(shown)[REGION] == whole).all(-1).mean() for shown in pictures]
        return np.array(seen)

    return score


def on_region():
    values = np.zeros((SIZE, SIZE))
    values[REGION] = 1
    return values


def test_the_perfect_map_scores_best_and_its_inverse_worst(picture):
    score = reads_a_region(picture)
    best = measure_curves(picture, on_region(), score)
    worst = measure_curves(picture, -on_region(), score)
    # An eighth comes first: insertion rises to 1 within it, deletion falls to 0 within it.
    assert best.areas == pytest.approx((15 / 16, 1 / 16), abs=1e-9)
    assert worst.difference == pytest.approx(-best.difference)
    rng = np.random.default_rng(1)
    others = [
        measure_curves(picture, rng.random((SIZE, SIZE)), score).difference for _ in range(50)
    ]
    assert worst.difference < min(others) < max(others) < best.difference
    assert abs(np.mean(others)) < 3 * np.std(others) / np.sqrt(50)


def test_an_order_and_its_reverse_have_opposite_differences(picture):
    values = np.random.default_rng(2).permutation(SIZE * SIZE).reshape(SIZE, SIZE)
    one = measure_curves(picture, values, reads_a_region(picture))
    other = measure_curves(picture, -values, reads_a_region(picture))
    assert one.difference == pytest.approx(-other.difference)
    np.testing.assert_allclose(one.insertion, other.deletion[::-1])


def test_curves_are_those_of_a_slow_loop(picture):
    values = np.random.default_rng(3).random((SIZE, SIZE))
    values[:, :3] = np.nan
    seen = []

    def score(pictures):
        seen.extend(pictures)
        return np.arange(len(pictures), dtype=float)

    curves = measure_curves(picture, values, score, steps=7)
    looked_at = ~np.isnan(values)
    order = [place for place in np.argsort(-values.ravel(), kind="stable")
             if looked_at.ravel()[place]]  # fmt: skip
    pixels = np.asarray(picture)
    for step in range(8):
        first = np.zeros(SIZE * SIZE, dtype=bool)
        first[order[: round(len(order) * step / 7)]] = True
        first = first.reshape(SIZE, SIZE)
        appears, vanishes = np.zeros_like(pixels), pixels.copy()
        appears[first], vanishes[first] = pixels[first], 0
        for curve, expected in ((curves.insertion, appears), (curves.deletion, vanishes)):
            shown = np.asarray(seen[int(curve[step])])
            np.testing.assert_array_equal(shown[looked_at], expected[looked_at])
            # What no token looks at comes and goes at the same pace.
            share = (shown[~looked_at] > 0).any(-1).mean()
            expected_share = step / 7 if expected is appears else 1 - step / 7
            assert share == pytest.approx(expected_share, abs=0.02)
    assert len(seen) == 14


def test_what_no_token_looks_at_makes_no_order_better(picture):
    """A model that reads the middle half alone: coming last, the rest would help every order."""
    whole = np.asarray(picture)[:, 8:24].astype(float)

    def score(pictures):
        return np.array([
            (np.asarray(shown)[:, 8:24] == whole).all(-1).mean() ** 2 for shown in pictures
        ])  # fmt: skip

    rng, differences = np.random.default_rng(5), []
    for _ in range(60):
        values = np.full((SIZE, SIZE), np.nan)
        values[:, 8:24] = rng.random((SIZE, 16))
        differences.append(measure_curves(picture, values, score, steps=8).difference)
    assert abs(np.mean(differences)) < 3 * np.std(differences) / np.sqrt(60) + 1e-3


def test_pictures_come_and_go_together(picture):
    """Two pictures: the one that the map prefers first, then the other; or both by halves."""
    other = Image.fromarray(255 - np.asarray(picture))
    maps = [np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE))]
    sets = picture_steps([picture, other], maps, replacement="black", steps=2)
    shown = [[(np.asarray(one) > 0).any(-1).mean() for one in pair] for pair in sets]
    assert shown == [[0, 0], [0, 1], [1, 1], [1, 0]]
    even = picture_steps([picture, other], [maps[0]] * 2, replacement="black", steps=2)
    halves = [(np.asarray(one) > 0).any(-1).mean() for one in even[1]]
    assert sum(halves) == pytest.approx(1)
    assert 0.25 < halves[0] < 0.75


def test_regions_come_whole(picture):
    """One strong pixel lifts its region of 4 x 4 above the others; ties stay together."""
    values = np.zeros((SIZE, SIZE))
    values[5, 9] = 1
    sets = picture_steps([picture], [values], replacement="black", steps=64, regions=8)
    first = (np.asarray(sets[1][0]) > 0).any(-1)
    assert first.sum() == 16
    assert first[4:8, 8:12].all()
    means = replayed(np.where(np.arange(SIZE) < 4, np.nan, values), 8)
    assert np.isnan(means[:, :4]).all()
    assert means[5, 9] == pytest.approx(1 / 16)
    assert means[20, 20] == 0


def test_tokens_come_and_go():
    shown = token_steps(np.array([0.1, np.nan, 3.0, 2.0]), 4)
    assert shown.tolist() == [
        [False] * 4,
        [False, False, True, False],
        [False, False, True, True],
        [True, False, True, True],
        [True] * 4,
        [True, True, False, True],
        [True, True, False, False],
        [False, True, False, False],
    ]
    insertion, deletion = both_ways(np.arange(8.0), 4)
    assert insertion.tolist() == [0, 1, 2, 3, 4]
    assert deletion.tolist() == [4, 5, 6, 7, 0]


def test_a_constant_map_ranks_at_random():
    first, second = (pixel_ranks(np.ones((20, 30)), seed) for seed in (0, 1))
    assert sorted(first.ravel()) == list(range(600))
    assert (first != second).any()
    assert (first == pixel_ranks(np.full((20, 30), 7.0), 0)).all()
    corners = [pixel_ranks(np.ones((16, 16)), seed)[0, 0] for seed in range(400)]
    assert abs(np.mean(corners) - 127.5) < 3 * 74 / 20  # uniform over 0..255


def test_ties_do_not_favour_a_side(picture):
    """Half of the map is flat: whatever comes first in it is drawn, not the upper left."""
    score = reads_a_region(picture)
    flat = np.zeros((SIZE, SIZE))
    differences = [measure_curves(picture, flat, score, seed=seed).difference for seed in range(60)]
    assert abs(np.mean(differences)) < 3 * np.std(differences) / np.sqrt(60)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((SIZE, SIZE), np.nan), "no finite values"),
        (np.full((SIZE, SIZE), np.inf), "infinite"),
        (np.zeros(SIZE), "two axes"),
        (np.zeros((SIZE, 5)), "painted over 5 x 32 pixels, but the picture has 32 x 32"),
    ],
)
def test_what_cannot_be_ranked_is_refused(picture, values, message):
    with pytest.raises(InputError, match=message):
        measure_curves(picture, values, lambda shown: np.zeros(len(shown)))


def test_replacements(picture):
    pixels = np.asarray(picture).astype(float)
    assert not background(picture, "black").any()
    assert np.abs(background(picture, "mean")[0, 0] - pixels.mean((0, 1))).max() <= 0.5
    assert background(picture, "blur").astype(float).std() < pixels.std() / 3
    assert {background(picture, name).shape for name in REPLACEMENTS} == {(SIZE, SIZE, 3)}
    with pytest.raises(InputError, match="'white' is none of black, blur, mean"):
        background(picture, "white")
    with pytest.raises(InputError, match="steps=0"):
        measure_curves(picture, on_region(), len, steps=0)


def test_areas_by_hand():
    curves = Curves(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.2, 0.0]))
    assert curves.areas == pytest.approx((0.5, 0.35))
    assert curves.difference == pytest.approx(0.15)
