"""The check of promises on drawn calibrations: it passes what holds and catches what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import vlmflow
from benchmarks.promise import TEST_LEVEL, chance_of_as_many, read_population, redraw
from tests.certification.test_outcomes import drawn
from tests.support.tiny import tiny_llava
from vlmflow.studies.certification import measuring
from vlmflow.studies.certification.independent import independent_samples
from vlmflow.studies.certification.run import read_certificate
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.studies.promise import Promise
from vlmflow.tasks.registry import find_task

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
    drawings = redraw(population, PROMISE, 250, DRAWS, 1, probe=False)
    assert drawings.certified > DRAWS / 2
    broken, wrong = drawings.broken(RISK)
    assert chance_of_as_many(broken, DRAWS, PROMISE.level) > TEST_LEVEL
    assert chance_of_as_many(wrong, DRAWS, PROMISE.level) < TEST_LEVEL
    assert (drawings.risks <= drawings.wrong).mean() > 0.9  # one step further along the path
    assert ((drawings.saved > 0) == (drawings.risks > 0)).mean() > 0.9
    assert drawings.saved.max() < 1


def test_where_nothing_passes_nothing_is_broken():
    population = drawn(200, 2, told=0.0)  # signals that tell nothing
    drawings = redraw(population, Promise(0.04, None, 0.9), 120, 3, 0, probe=True)
    assert (drawings.risks <= 0.04).all()
    again = redraw(population, Promise(0.04, None, 0.9), 120, 3, 0, probe=True)
    assert np.array_equal(drawings.risks, again.risks)


def test_a_promise_about_losses_is_kept_and_the_wrong_variant_is_caught():
    population = drawn(3000, 15, told=1.5)
    coarse = {"coarse": np.round(population.signals["good"])}
    # Every change loses the answer, and one sample in fifty gains one by leaving.
    gains = np.random.default_rng(0).random(population.changed.shape) < 0.02
    losses = population.changed.astype(float) - (gains & ~population.changed)
    population = replace(population, signals=coarse, losses=losses)
    most = 0.04
    drawings = redraw(population, Promise(None, most, 0.9), 400, DRAWS, 1, probe=False)
    assert drawings.certified > DRAWS / 2
    broken, wrong = drawings.broken(most)
    assert chance_of_as_many(broken, DRAWS, PROMISE.level) > TEST_LEVEL
    assert chance_of_as_many(wrong, DRAWS, PROMISE.level) < TEST_LEVEL


def test_a_population_is_read_through_the_model_and_measures_nothing_anew(tmp_path, monkeypatch):
    vlm = vlmflow.LVLM(*tiny_llava(5), name="tiny")
    settings = CertifySettings(risk=0.9, calibration=4, samples=2, layers=(1,), keeps=(0,), timed=0)
    vlmflow.certify(vlm, "scenes-existence", out=tmp_path / "own.json", settings=settings)
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured again"))
    findings = read_certificate(tmp_path / "own")
    task = find_task("scenes-existence")
    population = read_population(tmp_path / "own", vlm, task, findings)
    assert population.changed.shape == (6, 1, 1)
    answers = [
        (
            vlm.generate(s.pictures, s.question, max_new_tokens=task.max_new_tokens),
            vlm.generate(
                s.pictures, s.question, max_new_tokens=task.max_new_tokens,
                truncation=vlmflow.Truncation(1, 0),
            ),
        )
        for split, count in (("calibration", 4), ("test", 2))
        for s in independent_samples(task, split, count, 0)
    ]  # fmt: skip
    assert population.changed.ravel().tolist() == [own != other for own, other in answers]
