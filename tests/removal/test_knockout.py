"""Attention knockout equals a plain forward pass per layer with the answer's mask cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.families import FAMILIES, SIZES, picture
from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.model_parts import decoder_layers
from vlmflow.removal.knockout import knockouts
from vlmflow.truncation import Truncation

QUESTIONS = ("What colour is the circle?", "Is there a blue square in the picture? yes no")
ANSWERS = ("a red circle", "4 5")


def cut_logits(vlm, prompt, cut):
    """Logits at the answer's rows where these see no image token in the layers of ``cut``."""
    layout, layers = prompt.layout, decoder_layers(vlm.model)
    rows = [*layout.answer_rows.tolist(), len(layout) - 1]
    images = layout.image_positions.tolist()

    def hook(_module, args, kwargs):
        length = (args[0] if args else kwargs["hidden_states"]).shape[1]
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        mask = mask.clone()
        for row in rows:
            mask[..., row, images] = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask}

    handles = [layers[k].register_forward_pre_hook(hook, with_kwargs=True) for k in cut]
    try:
        with torch.no_grad():
            return vlm.model(**prompt.inputs, use_cache=False).logits[0, rows]
    finally:
        for handle in handles:
            handle.remove()


def expect_same(vlm, prompt, knockout, tolerance=2e-5):
    count = len(decoder_layers(vlm.model))
    reference = cut_logits(vlm, prompt, ()).log_softmax(-1)
    answer = torch.tensor(prompt.answer_ids)
    for curve, cuts in (
        (knockout.onwards, [range(k, count) for k in range(count)]),
        (knockout.single, [(k,) for k in range(count)]),
    ):
        assert curve.layers == tuple(range(count))
        for number, cut in enumerate(cuts):
            chances = cut_logits(vlm, prompt, cut).log_softmax(-1)
            kl = (reference.exp() * (reference - chances)).sum(-1)[:-1]
            own = torch.from_numpy(curve.kl[number])
            torch.testing.assert_close(own, kl, rtol=1e-3, atol=tolerance)
            logprob = chances[torch.arange(len(answer)), answer]
            own = torch.from_numpy(curve.logprob[number])
            torch.testing.assert_close(own, logprob, rtol=1e-4, atol=tolerance)
            agrees = (chances.argmax(-1) == reference.argmax(-1)).numpy()
            np.testing.assert_array_equal(curve.agrees[number], agrees[:-1])
            assert curve.ends_alike[number] == agrees[-1]


REFUSED = {
    "qwen3_5": "recurrent layers",
    "qwen3_5_moe": "recurrent layers",
    "lfm2_vl": "recurrent layers",
    "paligemma": "tokens of the prompt look at its last one",
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_in_a_padded_batch(family):
    vlm = family.lvlm()
    sizes = SIZES[:1] * 2 if family.one_shape else SIZES
    shown = [[picture(1, sizes[0])], [picture(2, sizes[1]), picture(3, sizes[0])]]
    if not vlm.family.pictures_in_prompt:
        shown[1] = shown[1][:1]
    batch = [
        vlm.prepare(images, question, answer)
        for images, question, answer in zip(shown, QUESTIONS, ANSWERS, strict=True)
    ]
    if family.model_type in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[family.model_type]):
            knockouts(vlm, batch)
        return
    for prompt, knockout in zip(batch, knockouts(vlm, batch), strict=True):
        expect_same(vlm, prompt, knockout)


def test_cut_off_from_the_first_layer_on_the_question_still_reads_the_picture():
    """Unlike removal: where the answer's rows alone are cut off, something reaches them."""
    vlm = LVLM(*tiny_llava(4, layers=4))
    prompt = vlm.prepare(picture(1, (60, 50)), QUESTIONS[0], ANSWERS[0])
    (knockout,) = knockouts(vlm, [prompt])
    removed = vlm.removal_curve(picture(1, (60, 50)), QUESTIONS[0], ANSWERS[0])
    assert knockout.onwards.mean_kl[0] > 0
    assert removed.mean_kl[0] > 0
    assert abs(knockout.onwards.mean_kl[0] - removed.mean_kl[0]) > 1e-4
    # In the last layer a row reads the picture itself or not at all: both cuts are one.
    np.testing.assert_allclose(knockout.onwards.kl[-1], knockout.single.kl[-1], atol=1e-6)
    np.testing.assert_allclose(knockout.onwards.kl[-1], removed.kl[-1], rtol=1e-3, atol=1e-6)


def test_own_answers_and_refusals():
    vlm = LVLM(*tiny_llava(4, layers=3))
    own = vlm.attention_knockout(picture(1, (60, 50)), QUESTIONS[0], max_new_tokens=3)
    assert 1 <= len(own.single.answer_tokens) <= 3
    assert own.onwards.same_answer.dtype == bool
    with pytest.raises(InputError, match="prepare every prompt with one"):
        knockouts(vlm, [vlm.prepare(picture(1, (60, 50)), QUESTIONS[0])])
    with Truncation(1, 0)(vlm.model), pytest.raises(InputError, match="an attention knockout"):
        vlm.attention_knockout(picture(1, (60, 50)), QUESTIONS[0], "red")
    assert not vlm.model.model.language_model.layers[0]._forward_hooks
