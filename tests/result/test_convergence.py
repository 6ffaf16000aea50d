"""How concentrated a map is: exact values on maps whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlmflow.errors import InputError
from vlmflow.result.convergence import entropy, mass_inside, top_mass

BOXES = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]], float)


def test_entropy_lies_between_one_token_and_all():
    assert entropy([0, 0, 5, 0]) == 0.0
    assert entropy(np.full(576, 1e-7)) == pytest.approx(1.0)
    assert entropy([1, 1, 0, 0]) == pytest.approx(math.log(2) / math.log(4))
    assert entropy([3.0]) == 0.0


@pytest.mark.parametrize(("tokens", "counted"), [(10, 1), (30, 3), (144, 15), (576, 58), (3, 1)])
def test_top_mass_counts_a_tenth_of_the_tokens_rounded_up(tokens, counted):
    assert top_mass(np.ones(tokens)) == pytest.approx(counted / tokens)


def test_top_mass_takes_the_largest():
    values = np.arange(20.0)
    assert top_mass(values) == pytest.approx((19 + 18) / values.sum())
    assert top_mass(values, 1.0) == 1.0
    with pytest.raises(InputError, match=r"share=1\.5"):
        top_mass(values, 1.5)


def test_mass_inside_is_weighted_by_area():
    assert mass_inside([1, 0, 0, 0], BOXES, (0, 0, 10, 10)) == 1.0
    assert mass_inside([1, 0, 0, 0], BOXES, (0, 0, 5, 5)) == pytest.approx(0.25)
    assert mass_inside([1, 1, 1, 1], BOXES, (5, 5, 15, 15)) == pytest.approx(0.25)
    assert mass_inside([1, 1, 1, 1], BOXES, (-9, -9, 99, 99)) == pytest.approx(1.0)
    assert mass_inside([1, 1, 1, 1], BOXES, (30, 30, 40, 40)) == 0.0


def test_tokens_without_a_place_count_as_outside():
    boxes = BOXES.copy()
    boxes[3] = np.nan
    boxes[2] = (0, 10, 0, 20)
    assert mass_inside([1, 0, 1, 2], boxes, (0, 0, 20, 20)) == pytest.approx(0.25)


@pytest.mark.parametrize("values", [[], [0, 0, 0, 0], [-1, -2, 0, -1]])
def test_a_map_without_mass_has_no_figures(values):
    assert entropy(values) is None
    assert top_mass(values) is None
    assert mass_inside(values, BOXES[: len(values)], (0, 0, 1, 1)) is None


def test_scale_does_not_matter_even_at_the_ends_of_float32():
    values = np.array([1, 2, 3, 4], np.float32)
    tiny = values * np.float32(1e-44)  # denormal: only a few bits left
    huge = values * np.float32(8e37)
    assert entropy(huge) == pytest.approx(entropy(values))
    assert entropy(tiny) == pytest.approx(entropy(values), rel=0.05)
    # what is negative carries nothing
    assert entropy([-5, 1, 1, 0]) == pytest.approx(entropy([0, 1, 1, 0]))


@pytest.mark.parametrize("values", [[1, np.nan], [1, np.inf], [[1, 2]]])
def test_maps_that_are_none_are_refused(values):
    with pytest.raises(InputError, match="a map over the image tokens"):
        entropy(values)


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (5, 0, 1, 5), (0, 0, 1), (0, 0, 1, np.nan), "here", None]
)
def test_boxes_that_are_none_are_refused(box):
    with pytest.raises(InputError, match="box="):
        mass_inside(np.zeros(4), BOXES, box)
