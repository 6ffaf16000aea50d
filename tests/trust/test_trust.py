"""The trust of a map is that of its answer's own tokens, beside random maps over them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.families import FAMILIES, picture
from tests.support.number_format import QUICK
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.result.map_trust import Curves
from vlmflow.statistics.student import t_quantile
from vlmflow.trust.passes import Passes
from vlmflow.trust.scoring import logprobs_with_tokens, token_probabilities
from vlmflow.trust.trust import ORDERS

TESTED = [family for family in FAMILIES if not family.queries]


@pytest.mark.parametrize("family", TESTED, ids=lambda family: family.name)
def test_scores_are_those_of_plain_forward_passes(family):
    vlm = family.lvlm()
    pictures = [picture(seed, (40, 40)) for seed in range(3)]
    answer = vlm.prepare(pictures[0], "What?", "1 2").answer_ids
    fast = token_probabilities(
        vlm, pictures, pictures[:1], 0, "What?", answer, passes=Passes(2, vlm.device)
    )
    for shown, row in zip(pictures, fast, strict=True):
        prompt = vlm.prepare(shown, "What?", answer)
        with torch.no_grad():
            probabilities = vlm.model(**prompt.inputs).logits[0].softmax(-1)
        own = probabilities[prompt.layout.answer_rows, list(answer)]
        np.testing.assert_allclose(row, own, rtol=1e-4, atol=1e-7)
    # With all image tokens, as the untouched prompt; with none, as a truncation from layer 0 on.
    shown = np.stack([np.full(prompt.layout.image_positions.size, one) for one in (True, False)])
    whole, none = logprobs_with_tokens(vlm, prompt, shown, Passes("auto", vlm.device))
    with torch.no_grad(), vlmflow.Truncation(0, 0)(vlm.model):
        rows = torch.from_numpy(prompt.layout.answer_rows)
        logits = logits_at(vlm.model, prompt.inputs, rows)[0].log_softmax(-1)
    np.testing.assert_allclose(np.exp(whole), own, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(none, logits[range(len(answer)), list(answer)], rtol=1e-3)


def test_removed_tokens_are_those_that_a_mask_hides():
    """A slow reference: the whole sequence, eager attention, tokens hidden by the mask."""
    model, processor = tiny_llava(3, layers=3, attn_implementation="eager")
    vlm = vlmflow.LVLM(model, processor, name="tiny")
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You look at pictures."}]},
        {"role": "user", "content": [
            {"type": "image", "image": picture(0, (40, 40))},
            {"type": "text", "text": "or"},
            {"type": "image", "image": picture(1, (30, 50))},
            {"type": "text", "text": "What?"},
        ]},
    ]  # fmt: skip
    prompt = vlm.prepare(None, messages, "1 2")
    rng = np.random.default_rng(0)
    shown = rng.random((5, prompt.layout.image_positions.size)) < [[0.1], [0.3], [0.5], [0.8], [1]]
    fast = logprobs_with_tokens(vlm, prompt, shown, Passes(2, vlm.device))
    length = len(prompt.layout)
    for own, row in zip(shown, fast, strict=True):
        mask = torch.ones(1, length, dtype=torch.long)
        mask[0, prompt.layout.image_positions[~own]] = 0
        inputs = {**prompt.inputs, "attention_mask": mask}
        with torch.no_grad():
            logits = model(**inputs, position_ids=torch.arange(length)[None]).logits[0]
        slow = logits.log_softmax(-1)[prompt.layout.answer_rows, list(prompt.answer_ids)]
        np.testing.assert_allclose(row, slow, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def explained():
    vlm = vlmflow.load("scenes-llava", dtype=QUICK)
    shown, question = vlmflow.sample("scenes-reading", index=3)
    return vlm, vlm.explain(shown, question)


def test_a_map_of_the_bundled_model_is_better_than_chance(explained):
    vlm, flow = explained
    seen = []
    trust = vlm.trust(flow, "saliency", 4, steps=4, progress=lambda *pair: seen.append(pair))
    assert len(trust.random) == ORDERS
    assert trust.difference > trust.limit > 0
    assert "better than chance for this answer" in str(trust)
    assert seen[-1] == (2 * 4 * (1 + ORDERS),) * 2
    # The ends are the picture and its replacement.
    assert trust.curves.insertion[-1] == pytest.approx(trust.curves.deletion[0])
    assert trust.curves.insertion[-1] == pytest.approx(
        float(flow.picture_effect.with_picture.mean()), rel=1e-3
    )


def test_a_token_is_scored_alone(explained):
    vlm, flow = explained
    whole = vlm.trust(flow, "saliency", 4, steps=2)
    tokens = [vlm.trust(flow, "saliency", 4, number, steps=2) for number in (1, 2, 3)]
    ends = np.mean([trust.curves.insertion[[0, -1]] for trust in tokens], axis=0)
    np.testing.assert_allclose(whole.curves.insertion[[0, -1]], ends, rtol=1e-5)
    assert tokens[1].token == flow.answer_tokens[1].strip()
    assert repr(tokens[1].token) in str(tokens[1])


def test_controls_stand_in_for_maps(explained, monkeypatch):
    vlm, flow = explained
    random = vlm.trust(flow, "random", steps=2)
    assert str(random).startswith("The random control ranks regions")
    assert vlm.trust(flow, "centre", steps=2).difference != random.difference
    unseen = np.isnan(flow.pixel_map("flow_map"))
    assert unseen.any()
    tested = []
    monkeypatch.setattr(
        "vlmflow.trust.trust.measure_curves",
        lambda shown, values, *_, **__: tested.append(values) or Curves(np.ones(3), np.ones(3)),
    )
    vlm.trust(flow, "edges", steps=2)
    np.testing.assert_array_equal(np.isnan(tested[0]), unseen)  # no control's either
    with pytest.raises(InputError, match="control 'edges' has no layers"):
        vlm.trust(flow, "edges", 3)


def test_what_cannot_be_tested_is_refused(explained):
    vlm, flow = explained
    with pytest.raises(InputError, match="llava_cam map is undefined there"):
        vlm.trust(flow, "llava_cam", flow.layers - 1)
    with pytest.raises(InputError, match="images are not the result's"):
        vlm.trust(flow, "flow_map", images=[Image.new("RGB", (5, 5))])
    other = dataclasses.replace(flow, model="another")
    with pytest.raises(InputError, match="measured on another, not on scenes-llava"):
        vlm.trust(other, "flow_map")
    turn = dataclasses.replace(flow, question="And now?")
    with pytest.raises(InputError, match="given to a conversation"):
        vlm.trust(turn, "flow_map")
    with pytest.raises(InputError, match="'pink' is none of"):
        vlm.trust(flow, "flow_map", replacement="pink")
    with pytest.raises(InputError, match=r"batch='none'; give an integer from 1 .*, or auto"):
        vlm.trust(flow, "flow_map", batch="none")
    with vlmflow.Truncation(2, 3)(vlm.model), pytest.raises(InputError, match="untouched"):
        vlm.trust(flow, "flow_map")


def test_student_quantiles():
    # Of the tables: 97.5 % at 8 and at 1 degree of freedom, 95 % at 5.
    assert t_quantile(0.975, 8) == pytest.approx(2.306, abs=1e-3)
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), abs=1e-2)
    assert t_quantile(0.95, 5) == pytest.approx(2.015, abs=1e-3)
