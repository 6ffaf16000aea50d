"""Regions of image tokens: cells of equal area of every picture, whatever its tokens look like."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.families import FAMILIES, picture
from vlmflow.flow.regions import neighbourhoods, regions_of
from vlmflow.lvlm.grids import ImageGrid
from vlmflow.lvlm.layout import Segment, TokenLayout


def layout_of(grids, sizes, tokens, gaps=()):
    """A layout of some text, ``tokens`` image tokens and an answer; ``gaps`` are row breaks."""
    del gaps
    kinds = [Segment.SYSTEM] * 2 + [Segment.IMAGE] * tokens + [Segment.USER, Segment.ANSWER]
    return TokenLayout(np.array(kinds), ("",) * len(kinds), sizes, tuple(grids))


def grid(image, rows, columns, size, first, kind="full"):
    """A grid over the whole picture; its first token stands at position ``first``."""
    x, y = np.linspace(0, size[0], columns + 1), np.linspace(0, size[1], rows + 1)
    boxes = np.array(
        [[(x[c], y[r], x[c + 1], y[r + 1]) for c in range(columns)] for r in range(rows)]
    )
    return ImageGrid(image, first + np.arange(rows * columns).reshape(rows, columns), boxes, kind)


def test_a_picture_is_cut_into_square_cells():
    layout = layout_of([grid(0, 4, 8, (80, 40), 2)], [(80, 40)], 32)
    cut = regions_of(layout, 8).reshape(4, 8)
    expected = np.kron(np.arange(8).reshape(2, 4), np.ones((2, 2), dtype=int))
    np.testing.assert_array_equal(cut, expected)


def test_the_middle_of_a_token_decides():
    cut = regions_of(layout_of([grid(0, 3, 3, (30, 30), 2)], [(30, 30)], 9), 4)
    np.testing.assert_array_equal(cut, [0, 1, 1, 2, 3, 3, 2, 3, 3])


def test_tiles_and_thumbnail_of_a_place_are_one_region():
    grids = [grid(0, 4, 4, (40, 40), 2, "tiles"), grid(0, 2, 2, (40, 40), 18, "thumbnail")]
    cut = regions_of(layout_of(grids, [(40, 40)], 20), 4)
    np.testing.assert_array_equal(cut[:16].reshape(4, 4)[::2, ::2].ravel(), cut[16:])
    assert sorted(set(cut)) == [0, 1, 2, 3]
    assert np.bincount(cut).tolist() == [5, 5, 5, 5]


def test_tokens_without_a_place_go_with_the_one_before():
    """Two rows of three tokens with a break after each, and a token before the first row."""
    x = grid(0, 2, 3, (30, 20), 0)
    moved = ImageGrid(0, np.array([[3, 4, 5], [7, 8, 9]]), x.boxes, "full")
    cut = regions_of(layout_of([moved], [(30, 20)], 9), 6)
    np.testing.assert_array_equal(cut, [0, 0, 1, 2, 2, 3, 4, 5, 5])


@pytest.mark.parametrize(("count", "expected"), [(8, 8), (5, 4), (2, 2), (3, 3)])
def test_several_pictures_share_the_regions(count, expected):
    grids = [grid(i, 2, 2, (20, 20), 2 + 4 * i) for i in range(4)]
    cut = regions_of(layout_of(grids, [(20, 20)] * 4, 16), count)
    assert len(set(cut)) == expected
    # Pictures that are together follow each other, and no region is in two of more than it must.
    assert (np.diff([set(cut[4 * i : 4 * i + 4]).pop() for i in range(4)]) >= 0).all()


def test_without_places_stretches_are_regions():
    np.testing.assert_array_equal(
        regions_of(layout_of([], [(20, 20)], 7), 3), [0, 0, 0, 1, 1, 2, 2]
    )
    np.testing.assert_array_equal(regions_of(layout_of([], [(20, 20)], 2), 5), [0, 1])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_cut_evenly(family):
    """Every image token has a region, and all regions of a picture have about as many pixels."""
    layout = family.lvlm().prepare(picture(1, (64, 48)), "What is it?", "red").layout
    cut = regions_of(layout, 4)
    assert cut.shape == layout.image_positions.shape
    assert set(cut) == set(range(cut.max() + 1))
    assert 1 < cut.max() + 1 <= 4
    assert np.bincount(cut).min() > 0.3 * np.bincount(cut).max()


def test_neighbours_stay_in_their_grid():
    grids = [grid(0, 2, 3, (30, 20), 2), grid(1, 1, 2, (20, 10), 8)]
    (first, around), (second, beside) = neighbourhoods(layout_of(grids, [(30, 20), (20, 10)], 8), 3)
    assert first.tolist() == [0, 1, 2, 3, 4, 5]
    assert around[1].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert around[3].tolist() == [0, 0, 1, 3, 3, 4, 3, 3, 4]
    assert second.tolist() == [6, 7]
    assert beside[0].tolist() == [6, 6, 7] * 3
