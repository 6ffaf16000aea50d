"""The check of promises on drawn calibrations: it passes what holds and catches what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.promise import TEST_LEVEL, chance_of_as_many, redraw
from tests.certification.test_outcomes import drawn
from vlmflow.studies.certification.paths import Promise

RISK, DRAWS = 0.05, 150
PROMISE = Promise(RISK, None, 0.9)


def test_the_chance_of_as_many_by_hand():
    assert chance_of_as_many(0, 10, 0.1) == 1
    assert chance_of_as_many(1, 2, 0.1) == pytest.approx(1 - 0.9**2)
    assert chance_of_as_many(2, 2, 0.1) == pytest.approx(0.1**2)


def test_what_is_deployed_keeps_its_promise_and_the_wrong_variant_is_caught():
    population = drawn(3000, 15, told=1.5)
    # In whole steps: from one policy of the path to the next, the risk rises by a good deal.
    coarse = {"coarse": np.round(population.signals["good"])}
    population = replace(population, signals=coarse)
    found = redraw(population, PROMISE, 250, DRAWS, 1, probe=False)
    assert found.certified > DRAWS / 2
    broken, wrong = found.broken(RISK)
    assert chance_of_as_many(broken, DRAWS, PROMISE.level) > TEST_LEVEL
    assert chance_of_as_many(wrong, DRAWS, PROMISE.level) < TEST_LEVEL
    assert (found.risks <= found.wrong).mean() > 0.9  # one step further along the path


def test_where_nothing_passes_nothing_is_broken():
    population = drawn(200, 2, told=0.0)  # signals that tell nothing
    found = redraw(population, Promise(0.04, None, 0.9), 120, 3, 0, probe=True)
    assert (found.risks <= 0.04).all()
    again = redraw(population, Promise(0.04, None, 0.9), 120, 3, 0, probe=True)
    assert np.array_equal(found.risks, again.risks)
