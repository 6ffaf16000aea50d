"""Insertion and deletion of models that read one region: best order, worst, and none at all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.faithfulness.curves import Curves, measure_curves
from vlmflow.faithfulness.order import pixel_ranks
from vlmflow.faithfulness.replacement import REPLACEMENTS, background

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
    order = np.argsort(-np.nan_to_num(values, nan=-1).ravel(), kind="stable")
    pixels = np.asarray(picture).reshape(-1, 3)
    for step in range(8):
        first = order[: round(SIZE * SIZE * step / 7)]
        appears, vanishes = np.zeros_like(pixels), pixels.copy()
        appears[first] = pixels[first]
        vanishes[first] = 0
        place = int(curves.insertion[step])
        unseen = np.isnan(values).ravel()  # what no token looks at comes last, in a drawn order
        if not unseen[first].any():
            np.testing.assert_array_equal(np.asarray(seen[place]).reshape(-1, 3), appears)
            place = int(curves.deletion[step])
            np.testing.assert_array_equal(np.asarray(seen[place]).reshape(-1, 3), vanishes)
    assert len(seen) == 14


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
