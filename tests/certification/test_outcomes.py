"""Policies replayed on measured outcomes, and what is fitted for them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from vlmflow.statistics.risk_control import binomial_p_value
from vlmflow.studies.certification.fitting import (
    area_under_curve,
    logistic,
    probe_values,
    probe_weights,
    thresholds_at,
)
from vlmflow.studies.certification.outcomes import Outcomes, first_reached
from vlmflow.studies.certification.paths import (
    CHANCES,
    choose_path,
    constant_exits,
    exits_by_group,
    fit_path,
    pass_along,
    signal_values,
    text_values,
)
from vlmflow.studies.certification.rivals import constant_rival
from vlmflow.studies.certification.skills import skills
from vlmflow.studies.promise import Promise

LAYERS, DEPTH = (2, 5, 8), 10


def drawn(count: int, seed: int, *, told: float = 3.0, groups: int = 2) -> Outcomes:
    """Samples with a hidden need: the later their cliff, the smaller their signal.

    Each has a cliff in 0..3; leaving before it changes the answer. ``told``: how far the signal
    stands out of its noise.
    """
    generator = np.random.default_rng(seed)
    cliff = generator.integers(0, 4, count)
    changed = (np.arange(3) < cliff[:, None])[:, :, None]
    noise = generator.normal(size=(count, 3))
    signal = -told * changed[:, :, 0] + noise
    states = np.concatenate([signal[:, :, None], generator.normal(size=(count, 3, 5))], axis=2)
    group = np.where(
        generator.random(count) < 0.8, cliff % groups, generator.integers(0, groups, count)
    )
    return Outcomes(
        layers=LAYERS,
        depth=DEPTH,
        keeps=(0.0,),
        changed=changed,
        losses=changed.astype(float),
        signals={"good": signal, "noise": generator.normal(size=(count, 3)), "wrong": -signal},
        states=states.astype(np.float32),
        texts=np.eye(groups, dtype=np.float32)[group],
        groups=tuple(f"kind {kind}" for kind in group),
        clusters=tuple(f"picture {place}" for place in range(count)),
    )


def test_replay_by_hand():
    outcomes = drawn(4, 0)
    changed = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=bool)
    outcomes = replace(outcomes, changed=changed[:, :, None], keeps=(0.25,))
    exits = first_reached(np.array([[0, 1, 2], [3, 0, 0], [0, 0, 0], [1, 1, 1.0]]), [2, 1, 1])
    assert exits.tolist() == [1, 0, 3, 1]
    assert outcomes.changes(exits, 0).tolist() == [True, False, False, True]
    # Left at layer 5, at 2, never, at 5 of 10; a quarter of the tokens stays.
    assert outcomes.saved(exits, 0) == pytest.approx([0.5 * 0.75, 0.8 * 0.75, 0, 0.5 * 0.75])
    # Leaving must not hurt at any later exit either.
    assert outcomes.oracle.tolist() == [2, 0, 3, 3]
    picked = outcomes.of(np.array([False, True, True, False]))
    assert picked.changed[:, :, 0].tolist() == changed[1:3].tolist()
    assert picked.groups == outcomes.groups[1:3]


def test_the_area_is_the_share_of_ordered_pairs():
    generator = np.random.default_rng(1)
    values, positive = generator.integers(0, 6, 40).astype(float), generator.random(40) < 0.4
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in itertools.product(values[positive], values[~positive])
    ]
    assert area_under_curve(values, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(values, np.ones(40)))


@pytest.mark.parametrize(("count", "width"), [(60, 3), (20, 50)])
def test_logistic_regression_stands_at_the_minimum(count, width):
    """The gradient of its loss is 0, with more samples than columns and with fewer."""
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(count, width)), generator.random(count) < 0.4
    ridge = 0.1
    weights, bias = logistic(x, y, ridge)
    chance = 1 / (1 + np.exp(-(x @ weights + bias)))
    assert x.T @ (chance - y) + count * ridge * weights == pytest.approx(np.zeros(width), abs=1e-5)
    assert float((chance - y).sum()) == pytest.approx(0, abs=1e-3)


def test_thresholds_fall_as_more_is_tolerated_and_useless_signals_have_none():
    outcomes = drawn(300, 3)
    changed = outcomes.changed[:, 1, 0]
    thresholds = thresholds_at(outcomes.signals["good"][:, 1], changed, CHANCES)
    assert (np.diff(thresholds) < 0).all()
    assert np.isinf(thresholds_at(outcomes.signals["wrong"][:, 1], changed, CHANCES)).all()
    assert np.isinf(thresholds_at(np.ones(300), changed, CHANCES)).all()


def test_a_probe_finds_what_states_hold_and_is_not_judged_on_what_it_was_fitted_on():
    outcomes = drawn(240, 4, told=2.0)
    states, changed = outcomes.states[:, 1], outcomes.changed[:, 1, 0]
    weights, bias = probe_weights(states, changed)
    new = drawn(400, 5, told=2.0)
    own = area_under_curve(new.states[:, 1] @ weights + bias, ~new.changed[:, 1, 0])
    assert own > 0.85
    # Labels without any connection: a probe learns them by heart, and out of its fold nothing.
    generator = np.random.default_rng(6)
    many, coin = generator.normal(size=(60, 200)), generator.random(60) < 0.5
    learned, at = probe_weights(many, coin)
    assert area_under_curve(many @ learned + at, ~coin) == 1
    folds = np.arange(60) % 5
    assert 0.25 < area_under_curve(probe_values(many, coin, folds), ~coin) < 0.75


def test_the_chosen_path_is_of_the_signal_that_tells():
    fitted, testing, promise = drawn(200, 7), drawn(300, 8), Promise(0.05, None, 0.9)
    values = signal_values(fitted, [testing])
    paths = [fit_path(fitted, name, 0, table) for name, table in values[0].items()]
    path = choose_path(paths, fitted, values[0], promise)
    assert path.signal in ("good", "probe")
    replayed = path.exits(values[1][path.signal])
    tested = pass_along(testing, replayed, path.keep, promise)
    assert tested.accepted is not None
    changes = int(testing.changes(replayed[tested.accepted], 0).sum())
    assert tested.p_values[tested.accepted] == binomial_p_value(changes, 300, 0.05)
    rival, chosen = constant_rival(testing, testing, promise)
    assert chosen is None  # a quarter of the samples never may leave
    assert rival.saved == 0
    assert testing.saved(replayed[tested.accepted], 0).mean() > 0.2


def test_one_layer_for_everybody_is_accepted_where_it_is_safe():
    outcomes = drawn(200, 9)
    safe = outcomes.changed.copy()
    safe[:, 1:] = False
    outcomes = replace(outcomes, changed=safe)
    assert [int(exits[0]) for exits in constant_exits(outcomes)] == [3, 2, 1, 0]
    rival, chosen = constant_rival(outcomes, outcomes, Promise(0.05, None, 0.9))
    assert chosen == (1, 0)
    assert rival.setting == "layer 5, keep 0"
    assert rival.saved == pytest.approx(0.5)


def test_a_layer_per_kind_is_the_first_that_is_safe_for_the_kind():
    fitted = drawn(400, 10)
    own, other = exits_by_group(fitted, drawn(50, 11), 0)
    assert len(own) == len(other) == len(CHANCES)
    for chance, exits in zip(CHANCES, own, strict=True):
        for kind in set(fitted.groups):
            rows = np.array(fitted.groups) == kind
            place = int(exits[rows][0])
            shares = fitted.changed[rows][:, :, 0].mean(0)
            assert place == next((e for e in range(3) if shares[e] <= chance), 3)


def test_a_text_probe_sees_the_kind_and_no_more():
    fitted, testing = drawn(300, 12), drawn(300, 13)
    inside, outside = text_values(fitted, [testing], 0)
    assert len(np.unique(np.round(outside[:, 0], 6))) <= 2  # one value per kind of question
    assert inside.shape == (300, 3)


def test_skill_within_kinds_falls_where_a_signal_only_knows_the_kind():
    outcomes = drawn(600, 14)
    kind = np.array([int(group[-1]) for group in outcomes.groups], float)
    values = {"kind": np.repeat(kind[:, None], 3, axis=1), "good": outcomes.signals["good"]}
    rows = {(row.signal, row.layer): row for row in skills(outcomes, values, 0)}
    for layer in LAYERS:
        assert rows["kind", layer].within == pytest.approx(0.5)
        assert rows["good", layer].within > 0.9
        assert rows["good", layer].low < rows["good", layer].area < rows["good", layer].high


def test_what_cannot_be_read_tells_nothing():
    """And not as much as a coin, which the area of equal values would say."""
    outcomes = drawn(60, 18)
    values = {"silent": np.full((60, 3), np.nan)}
    assert [row.area for row in skills(outcomes, values, 0)] == [None] * 3


def test_what_is_promised_holds_over_many_calibrations():
    """The whole way, fit and test, drawn anew 300 times; risk is that of a large population."""
    promise, population = Promise(0.05, None, 0.9), drawn(20_000, 15, told=1.5)
    values = population.signals["good"]
    generator, broken, certified = np.random.default_rng(16), 0, 0
    for _ in range(300):
        sample = population.of(generator.choice(20_000, 250, replace=False))
        fitted, testing = sample.of(np.arange(100)), sample.of(np.arange(100, 250))
        path = fit_path(fitted, "good", 0, fitted.signals["good"])
        tested = pass_along(testing, path.exits(testing.signals["good"]), 0, promise)
        if tested.accepted is not None:
            exits = first_reached(values, path.thresholds[tested.accepted])
            certified += 1
            broken += float(population.changes(exits, 0).mean()) > 0.05
    assert certified > 150
    assert 1 - binomial_p_value(broken - 1, 300, 0.1) > 0.01 if broken else True


def test_both_risks_have_to_pass():
    outcomes = drawn(300, 17)
    exits = outcomes.oracle

    def p_value(promise: Promise, outcomes: Outcomes) -> float:
        return pass_along(outcomes, [exits], 0, promise).p_values[0]

    assert p_value(Promise(0.05, None, 0.9), outcomes) < 1e-4
    both = Promise(0.05, 0.02, 0.9)
    lossy = replace(outcomes, losses=outcomes.losses + 0.5)
    assert p_value(both, outcomes) < 0.1
    assert p_value(both, lossy) > 0.9
