"""The rules of the claims page, on evidence whose verdict is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.evidence import TASKS, Evidence, exit_layers, truncations
from benchmarks.claims.page import page
from benchmarks.claims.rules import (
    FAILS,
    HOLDS,
    UNCLEAR,
    UNMEASURED,
    decoder_not_connector,
    overall,
)
from vlmflow.studies.truncations.arms import arms_of

LAYERS, COUNT = 12, 200
PYRAMIDDROP = "layer 3 : 6 : 9, keep 50 % : 25 % : 12.5 % by last_attention, repack"
RULES = {claim.number: claim.judge for claim in CLAIMS}


def made(
    task: str = TASKS[0],
    *,
    cliff: int | None = 6,
    peak: int = 2,
    share: float = 0.01,
    last: float = 0.05,
    model: str = "a",
    gains: dict[str, float] | None = None,
) -> Evidence:
    """A model that is right on 80 % everywhere, but for arms with other scores by their names."""
    concentration = np.full((COUNT, LAYERS), 0.1)
    concentration[:, peak] = 0.9
    attention = np.full((COUNT, LAYERS), share)
    attention[:, :2] = 0.4
    attention[:, -1] = last
    changed = np.ones((COUNT, LAYERS))
    if cliff is not None:
        changed[:, cliff:] = 0
    listed = arms_of([("", policy) for policy in truncations(LAYERS)], LAYERS, seed=0)
    arms = {arm.name: arm for arm in listed}
    random = {
        name: drawn.name
        for name, arm in arms.items()
        if arm.kind == "truncation" and arm.truncation is not None and arm.truncation.ranks
        for drawn in listed
        if drawn.kind == "random"
        and drawn.truncation == replace(arm.truncation, rank_by=drawn.truncation.rank_by)
    }
    right = {name: 0.8 + (gains or {}).get(name, 0.0) for name in arms}
    scores = {
        (split, name): (np.arange(COUNT) < round(COUNT * value)).astype(float)
        for split in ("calibration", "test")
        for name, value in right.items()
    }
    agreement = {
        name: 1.0
        for name, arm in arms.items()
        if arm.truncation is not None
        and (cliff is not None and arm.truncation.stages[0].layer >= cliff)
    }
    agreement = {name: agreement.get(name, 0.2) for name in arms}
    return Evidence(
        model, task, 0.8, concentration, attention, changed, scores, arms, random, agreement
    )


def words(number: str, *tasks: Evidence) -> list[str]:
    return [verdict.word for verdict in RULES[number](tasks)]


@pytest.mark.parametrize(
    ("number", "holds", "fails"),
    [
        ("1", {"peak": 5}, {"peak": 6}),
        ("2a", {"share": 0.019}, {"share": 0.021}),
        ("2b", {"last": 0.05}, {"last": 0.001}),
        ("3", {"cliff": 11}, {"cliff": None}),
        ("5a", {}, {"gains": {"layer 7, keep 0": -0.2}}),
        ("5b", {"gains": {"layer 7, keep 0": 0.1}}, {"gains": {"layer 7, keep 0": -0.1}}),
        ("8", {}, {"gains": {PYRAMIDDROP: -0.2}}),
    ],
)
def test_a_claim_holds_and_fails(number, holds, fails):
    assert overall(RULES[number]([made(**holds)])) == HOLDS
    assert overall(RULES[number]([made(**fails)])) == FAILS


def test_the_cliff_is_taken_from_the_calibration_split():
    """Its layer is the first of those tried from which on all agree."""
    task = made(cliff=6)
    layer = min(k for k in exit_layers(LAYERS) if k >= 6)
    (verdict,) = RULES["5a"]([task])
    assert verdict.figure.endswith(f"layer {layer}, keep 0")
    task.agreement[f"layer {exit_layers(LAYERS)[-1]}, keep 0"] = 0.5
    assert words("5a", task) == [FAILS]
    task.agreement.clear()
    task.arms.clear()
    assert words("5a", task) == [UNMEASURED]


def test_order_of_cliffs():
    paper = [made(task, cliff=layer) for task, layer in zip(TASKS, (3, 5, 7, 11), strict=True)]
    assert words("4", *paper) == [HOLDS] * 3
    assert words("4", *reversed(paper)) == [HOLDS] * 3  # by task, not as they come
    other = [made(task, cliff=layer) for task, layer in zip(TASKS, (7, 5, 5, 11), strict=True)]
    assert words("4", *other) == [FAILS, UNCLEAR, HOLDS]


def test_the_best_setting_is_chosen_on_the_calibration_split():
    name = "layer 2, keep 25 % by last_attention"
    task = made(gains={name: 0.1})
    assert words("6", task) == [HOLDS]
    # The same gain on the test split alone is not seen by who chooses.
    for arm in (name, *(arm for arm in task.arms if arm.startswith("layer 1, keep 10 %"))):
        task.scores["calibration", arm] = np.zeros(COUNT)
    (verdict,) = RULES["6"]([task])
    assert verdict.word == UNCLEAR
    assert name not in verdict.figure


def test_merging_is_held_against_untouched_and_against_dropping():
    merged = "layer 4, keep 10 % by last_attention, merge"
    better = made(gains={merged: 0.1, merged.removesuffix(", merge"): 0.1})
    assert words("9a", better) == [HOLDS]
    assert words("9b", better) == [UNCLEAR]
    assert words("9b", made(gains={merged: 0.1})) == [HOLDS]
    worse = {
        name: -0.2
        for name, arm in made().arms.items()
        if arm.truncation is not None and arm.truncation.remainder == "merge"
    }
    assert words("9a", made(gains=worse)) == [FAILS]


def test_intervals_widen_with_the_number_of_tasks():
    gain = {"layer 7, keep 0": 0.035}
    assert words("5b", made(gains=gain)) == [HOLDS]
    assert words("5b", *(made(task, gains=gain) for task in TASKS)) == [UNCLEAR] * 4


def test_connectors_and_decoders():
    def model(name: str, cliff: int) -> list[Evidence]:
        return [made(task, cliff=cliff, model=name) for task in TASKS]

    models = {
        "scenes-smollm2": model("scenes-smollm2", 3),
        "scenes-llava": model("scenes-llava", 9),
    }
    assert decoder_not_connector(models).word == UNMEASURED
    models["scenes-smolvlm"] = model("scenes-smolvlm", 3)
    assert "scenes-smollm2-seed1" in decoder_not_connector(models).figure
    models["scenes-smollm2-seed1"] = model("scenes-smollm2-seed1", 4)
    assert decoder_not_connector(models).word == HOLDS
    models["scenes-smollm2-seed1"] = model("scenes-smollm2-seed1", 9)
    assert decoder_not_connector(models).word == UNCLEAR
    models["scenes-smolvlm"] = model("scenes-smolvlm", 11)
    assert decoder_not_connector(models).word == FAILS


def test_the_page_says_every_rule_and_verdict():
    text = page({"a": [made()], "b": [made(cliff=None, model="b")]})
    for claim in CLAIMS:
        assert claim.rule in text
        assert claim.text in text
    assert "| 3 | There is a cliff layer before the end. | **holds** | **fails** |" in text
    assert "none (none to none)" in text
