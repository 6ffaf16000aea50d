"""Localisation on maps whose place is known, and the words that it is judged by."""

from __future__ import annotations

import numpy as np
import pytest

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import ImageGrid
from vlmflow.trust.localisation import (
    cells_inside,
    cells_of,
    energy_inside,
    intersection_over_union,
    otsu,
    pixels_inside,
    pointing,
    tam_scores,
)
from vlmflow.trust.words import words_of

MASK = np.zeros((6, 8), dtype=bool)
MASK[1:3, 2:6] = True


def values(**at):
    array = np.zeros(MASK.shape)
    for place, value in at.items():
        row, column = map(int, place[1:].split("_"))
        array[row, column] = value
    return array


@pytest.mark.parametrize(
    ("array", "result"),
    [
        (values(p1_2=3, p0_0=2), "hit"),
        (values(p1_2=3, p2_5=3), "hit"),  # a tie inside points inside
        (values(p1_2=2, p0_0=3), "miss"),
        (values(p1_2=3, p0_0=3), "tie"),
        (np.ones(MASK.shape), "tie"),
        (np.zeros(MASK.shape), "empty"),
        (-np.ones(MASK.shape), "empty"),
        (np.full(MASK.shape, np.nan), "empty"),
        (np.where(MASK, np.nan, values(p0_0=1)), "miss"),
    ],
)
def test_the_strict_pointing_game(array, result):
    assert pointing(array, MASK) == result


def test_cells_of_several_grids_and_pictures():
    """Tiles of 10 pixels over 40 x 20, and a thumbnail of one cell; the second picture's miss."""
    x, y = np.meshgrid(np.arange(0, 40, 10), np.arange(0, 20, 10))
    boxes = np.stack([x, y, x + 10, y + 10], -1).astype(float)
    whole = np.array([[[0.0, 0, 40, 20]]])
    grids = [
        ImageGrid(0, np.arange(8).reshape(2, 4), boxes),
        ImageGrid(0, np.array([[8]]), whole, "thumbnail"),
        ImageGrid(1, np.arange(9, 17).reshape(2, 4), boxes),
    ]
    tokens = np.arange(17.0)
    np.testing.assert_array_equal(cells_of(grids, tokens, np.arange(17)), tokens)
    # Centres of two cells of the upper row; the thumbnail's cell holds the box's centre.
    assert np.flatnonzero(cells_inside(grids, (8, 2, 29, 9))).tolist() == [1, 2, 8]
    # No centre lies in a small box; it is in the cell around it all the same.
    assert np.flatnonzero(cells_inside(grids, (1, 1, 3, 3))).tolist() == [0, 8]
    assert pointing(tokens, cells_inside(grids, (8, 2, 29, 9))) == "miss"


def test_pixels_of_a_box():
    assert pixels_inside((2, 1, 6, 3), (8, 6)).tolist() == MASK.tolist()
    assert np.argwhere(pixels_inside((3.6, 2.6, 3.9, 2.9), (8, 6))).tolist() == [[2, 3]]


def test_energy_counts_positive_values_only():
    assert energy_inside(values(p1_2=3, p0_0=1, p5_5=-7), MASK) == pytest.approx(0.75)
    assert energy_inside(np.ones(MASK.shape), MASK) == pytest.approx(8 / 48)
    assert energy_inside(np.zeros(MASK.shape), MASK) is None


def test_otsu_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    both = np.concatenate([rng.normal(0, 1, 500), rng.normal(8, 1, 200)])
    threshold = otsu(both)
    assert 2 < threshold < 6

    def separation(at):
        low, high = both[both <= at], both[both > at]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(separation(at) for at in np.linspace(both.min(), both.max(), 400)[1:-1])
    assert separation(threshold) > 0.995 * best
    assert otsu(np.ones(5)) == np.inf


def test_iou_of_a_map():
    assert intersection_over_union(MASK.astype(float), MASK) == 1
    assert intersection_over_union(1 - MASK.astype(float), MASK) == 0
    half = MASK.astype(float)
    half[:, 4:] = 0
    assert intersection_over_union(half, MASK) == pytest.approx(0.5)
    assert intersection_over_union(np.ones(MASK.shape), MASK) == 0


def test_tam_scores_by_hand():
    on, half = MASK.astype(float), MASK.astype(float)
    half[:, 4:] = 0
    # The best token of each word counts: IoU 1 and 0.5. Both thresholds lie between 0 and 1.
    spoken = [[half, on], [half]]
    quiet, loud = np.zeros(MASK.shape), np.ones(MASK.shape)
    scores = tam_scores(spoken, [[quiet, loud], [quiet]], MASK)
    assert scores.object_iou == pytest.approx(0.75)
    assert scores.function_iou == pytest.approx(0.75)
    # Thresholds follow the object words' scale; a constant one has none.
    assert tam_scores([[on * 9]], [[loud * 0.03]], MASK).function_iou == 1
    assert tam_scores([[loud]], [[quiet]], MASK).function_iou is None
    assert tam_scores(spoken, [], MASK).function_iou is None
    assert tam_scores([], [[quiet]], MASK).object_iou is None


def test_words_and_their_tokens():
    words = words_of(["The", " num", "ber", " is", " ", "7", "0", "."])
    spelled = [(word.text, word.tokens, word.is_function) for word in words]
    assert spelled == [
        ("The", (0,), True),
        ("number", (1, 2), False),
        ("is", (3,), True),
        ("70", (5, 6), False),
    ]


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"as large as the map \(6, 8\), not bool \(2, 2\)"):
        pointing(np.zeros((6, 8)), np.ones((2, 2), dtype=bool))
    with pytest.raises(InputError, match="must be boolean"):
        energy_inside(np.zeros((6, 8)), np.ones((6, 8)))
    with pytest.raises(InputError, match="the mask is empty"):
        intersection_over_union(np.zeros((6, 8)), np.zeros((6, 8), dtype=bool))
