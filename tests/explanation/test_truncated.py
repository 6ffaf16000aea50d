"""A truncated answer beside the explained one: what each layer saw, against masks and by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.masked_truncation import masked_logits
from tests.support.synthetic import synthetic_flow
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, Truncation
from vlmflow.errors import InputError
from vlmflow.lvlm.batch import collate
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.truncated_answer import TruncatedAnswer

POLICY = Truncation((1, 3), (0.5, 3), "last_attention")


def picture(seed, size=(60, 40)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*tiny_llava(3, layers=5, attn_implementation="eager"))


@pytest.mark.parametrize(
    "policy", [POLICY, Truncation(2, 0), Truncation((0, 2), (7, 2), "question_similarity")]
)
def test_every_layer_saw_what_a_masked_run_sees(vlm, policy, tmp_path):
    """Two pictures; the slow way runs the whole sequence, with tokens hidden by masks."""
    pictures = [picture(1), picture(2)]
    flow = vlm.explain(pictures, "What?", max_new_tokens=4, truncation=policy)
    prompt = vlm.prepare(pictures, "What?", "1")
    _, seen = masked_logits(vlm.model, vlm.decoder_layers, prompt, policy, vlm.image_token_id)
    image = flow.layout.image_positions
    expected = np.array([[position in of_layer for position in image] for of_layer in seen])
    np.testing.assert_array_equal(flow.truncated.seen, expected)
    assert not expected.all()
    assert flow.truncated.answer == vlm.generate(
        pictures, "What?", max_new_tokens=4, truncation=policy
    )
    assert flow.answer == vlm.generate(pictures, "What?", max_new_tokens=4)
    again = InformationFlow.load(flow.save(tmp_path)).truncated
    np.testing.assert_array_equal(again.seen, flow.truncated.seen)
    assert again.answer == flow.truncated.answer
    assert Truncation.from_json(again.settings).to_json() == policy.to_json()


def test_a_truncation_that_does_not_fit_is_refused_before_anything_is_measured(vlm, monkeypatch):
    monkeypatch.setattr("vlmflow.model_api.explain", None)
    with pytest.raises(InputError, match="layer=99"):
        vlm.explain(picture(1), "What?", truncation=Truncation(99, 0))


def test_positions_of_a_padded_batch_are_those_of_each_prompt_alone(vlm):
    prompts = [vlm.prepare(picture(1), "What is it?"), vlm.prepare([picture(2), picture(3)], "No?")]
    inputs, layouts = collate(prompts, vlm.processor.tokenizer.pad_token_id)
    with POLICY(vlm.model) as run, torch.no_grad():
        vlm.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    together = [run.positions_per_layer(row) for row in (0, 1)]
    counts = run.tokens_per_layer
    for row, prompt in enumerate(prompts):
        with POLICY(vlm.model) as run, torch.no_grad():
            vlm.model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
        padding = len(layouts[row]) - len(prompt.layout)
        for layer, (batched, alone) in enumerate(
            zip(together[row], run.positions_per_layer(), strict=True)
        ):
            np.testing.assert_array_equal(batched - padding, alone)
            assert len(batched) == counts[row, layer]
    with pytest.raises(InputError, match=r"row=1, but the batch has 1 prompt"):
        run.positions_per_layer(1)
    with POLICY(vlm.model) as fresh:
        with pytest.raises(InputError, match="no prompt with pictures has run"):
            fresh.positions_per_layer()
        vlm.generate_ids(prompts[0], max_new_tokens=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": np.ones((2, 3), bool)}, r"must be \(2, 4\) bool"),
        ({"seen": np.ones((2, 4))}, "not .* float64"),
        ({"answer": None}, "must be a text"),
    ],
)
def test_what_does_not_fit_a_result_is_refused(change, message):
    flow = synthetic_flow(layers=2, grid=(2, 2))
    fields = {"settings": {}, "answer": "red", "seen": np.ones((2, 4), bool), **change}
    with pytest.raises(InputError, match=message):
        dataclasses.replace(flow, truncated=TruncatedAnswer(**fields))
