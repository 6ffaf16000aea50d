"""The rules of the claims page, on evidence whose verdict is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.claims.__main__ import DOCS, read_all
from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.evidence import (
    PRESETS,
    TASKS,
    Evidence,
    candidates,
    drawn,
    exit_layers,
    load_evidence,
    save_evidence,
)
from benchmarks.claims.page import page
from benchmarks.claims.rules import (
    FAILS,
    HOLDS,
    UNCLEAR,
    UNMEASURED,
    as_dropped,
    chosen,
    decoder_not_connector,
    overall,
)
from vlmflow.bundled.shelf import bundled_models
from vlmflow.studies.truncations.arms import NO_IMAGE, UNTOUCHED, label
from vlmflow.truncation.presets import preset
from vlmflow.truncation.truncation import Truncation

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
    listed = [*candidates(LAYERS), *(preset(name, LAYERS) for name in PRESETS)]
    policies = {label(policy): policy for policy in listed}
    right = {name: 0.8 + (gains or {}).get(name, 0.0) for name in [UNTOUCHED, NO_IMAGE, *policies]}
    scores = {
        (split, name): (np.arange(COUNT) < round(COUNT * value)).astype(float)
        for split in ("calibration", "test")
        for name, value in right.items()
    }
    agreement = {
        name: 1.0 if cliff is not None and policy.stages[0].layer >= cliff else 0.2
        for name, policy in policies.items()
    }
    return Evidence(
        model, task, 0.8, concentration, attention, changed, scores, policies, agreement
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
    task.policies.clear()
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
    for arm in (name, *(arm for arm in task.policies if arm.startswith("layer 2, keep 10 %"))):
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
    worse = {name: -0.2 for name, policy in made().policies.items() if policy.remainder == "merge"}
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


def test_only_what_calibration_singles_out_is_tested():
    ranked, merged = (
        "layer 2, keep 25 % by last_attention",
        "layer 4, keep 1 by last_attention, merge",
    )
    task = made(cliff=6, gains={ranked: 0.1, merged: 0.15})
    published = [preset(name, LAYERS) for name in PRESETS]
    assert chosen(task) == [
        *published,
        Truncation(min(k for k in exit_layers(LAYERS) if k >= 6), 0),
        task.policies[ranked],
        drawn(task.policies[ranked]),
        task.policies[merged],
        as_dropped(task.policies[merged]),
    ]
    assert chosen(made(cliff=None))[: len(PRESETS) + 1] != chosen(task)[: len(PRESETS) + 1]


def test_evidence_is_the_same_after_saving_and_reading(tmp_path):
    task = made(gains={"layer 2, keep 25 % by last_attention": 0.1})
    save_evidence(task, tmp_path)
    read = load_evidence(tmp_path, "a", task.task)
    assert read is not None
    assert page({"a": [read]}) == page({"a": [task]})
    assert load_evidence(tmp_path, "b", task.task) is None


def test_the_page_in_the_docs_is_made_from_what_was_measured():
    """Every verdict and figure of it, so that no number there is typed by hand."""
    measured = read_all(bundled_models())
    assert measured
    assert (DOCS / "claims.md").read_text("utf-8") == page(measured)
