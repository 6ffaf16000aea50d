"""Counts and seeds: integers that everything beneath can take, or one sentence."""

from __future__ import annotations

import pytest

from vlmflow.errors import InputError
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.llava_cam_smooth import LlavaCamSmooth
from vlmflow.parameters import LARGEST, check_integer
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.studies.truncations.plan import Plan
from vlmflow.truncation.rankings.duplication import Duplication
from vlmflow.truncation.rankings.random import Random


def plan(**settings):
    return Plan("scenes-reading", truncations=("layer=1,keep=0",), **settings)


TAKERS = {
    "samples": [CliffSettings, plan],
    "calibration": [CliffSettings, plan],
    "batch": [CliffSettings],
    "draws": [CliffSettings],
    "timed": [plan],
    "max_new_tokens": [ExplainOptions, plan],
    "copies": [LlavaCamSmooth],
    "pivots": [Duplication],
    "seed": [CliffSettings, plan, LlavaCamSmooth, Random],
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(
    "value",
    [-1, LARGEST + 1, 10**5000, 1.5, True, "3"],
    ids=["-1", "more", "huge", "1.5", "true", "text"],
)
def test_impossible_counts_and_seeds_are_refused_by_name(name, value):
    for taker in TAKERS[name]:
        with pytest.raises(InputError, match=rf"{name}=.*; give an integer from [01] to 2,147"):
            taker(**{name: value})


@pytest.mark.parametrize("name", TAKERS)
def test_the_largest_is_taken(name):
    for taker in TAKERS[name]:
        assert getattr(taker(**{name: LARGEST}), name) == LARGEST


def test_a_bound_is_part_of_the_range():
    check_integer("n", 3, least=3)
    with pytest.raises(InputError, match="n=2; give an integer from 3 to"):
        check_integer("n", 2, least=3)


def test_the_largest_seed_draws_noise():
    """What takes the seeds takes all of them."""
    import numpy as np
    import torch

    assert torch.Generator().manual_seed(LARGEST)
    assert np.random.default_rng(LARGEST)
