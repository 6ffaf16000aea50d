"""Answers of several truncations from one prefill are those of one generate call each."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.number_format import QUICK
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, Truncation
from vlmflow.errors import InputError, ModelError
from vlmflow.tasks.registry import find_task
from vlmflow.truncation import stages
from vlmflow.truncation.rankings.registry import RANKINGS
from vlmflow.truncation.shared_answers import shared_answers

BY_RANKING = [Truncation(2, 5, name) for name in RANKINGS.bundled()]
SCHEDULES = [
    Truncation(0, 0),
    Truncation(1, 0),
    Truncation(3, 0),
    Truncation(0, 16, "uniform"),
    Truncation(2, 1.0),
    Truncation((1, 3), (0.5, 2), "mean_attention", positions="repack"),
    Truncation((1, 2, 3), (0.6, 0.3, 0), "last_attention", remainder="average"),
    Truncation(2, 0.3, "text_attention", remainder="merge", positions="repack"),
]


def prompt_of(vlm, seed=1, pictures=1):
    generator = torch.Generator().manual_seed(seed)
    shown = []
    for _ in range(pictures):
        pixels = torch.randint(0, 256, (40, 60, 3), generator=generator, dtype=torch.uint8)
        shown.append(Image.fromarray(pixels.numpy()))
    return vlm.prepare(shown, "Which number is printed on the star?")


def one_by_one(vlm, prompt, policies, length):
    return [
        vlm.generate_ids(prompt, max_new_tokens=length, truncation=policy)
        for policy in [None, *policies]
    ]


@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"attn_implementation": "eager"}])
@pytest.mark.parametrize("policies", [BY_RANKING, SCHEDULES], ids=["rankings", "schedules"])
def test_answers_are_those_of_generate(policies, options):
    vlm = LVLM(*tiny_llava(3, **options))
    for pictures in (1, 2):
        prompt = prompt_of(vlm, pictures=pictures)
        answers = shared_answers(vlm, [prompt], policies, max_new_tokens=6)[0]
        assert answers == one_by_one(vlm, prompt, policies, 6)
        assert len(set(answers)) > 2  # random weights: truncations do change the answer


def test_oracles_of_one_signal_measure_once(monkeypatch):
    vlm = LVLM(*tiny_llava(3))
    measured = []
    first = stages.first_token_maps

    def counted(model, layers, call, signal):
        measured.append(signal)
        return first(model, layers, call, signal)

    monkeypatch.setattr(stages, "first_token_maps", counted)
    policies = [Truncation(2, keep, name) for name in ("saliency", "llava_cam") for keep in (2, 5)]
    for pictures in (1, 2):
        measured.clear()
        shared_answers(vlm, [prompt_of(vlm, pictures=pictures)], policies, max_new_tokens=2)[0]
        assert sorted(measured) == ["llava_cam", "saliency"]


def test_sliding_windows_decode_step_by_step():
    """Tokens cannot be taken back where a window has forgotten others."""
    config = {"sliding_window": 8}
    vlm = LVLM(*tiny_llava(4, text_model="mistral", text_config=config, kv_heads=2))
    prompt = prompt_of(vlm)
    policies = [Truncation(1, 0), Truncation(2, 5, "key_norm")]
    answers = shared_answers(vlm, [prompt], policies, max_new_tokens=5)[0]
    assert answers == one_by_one(vlm, prompt, policies, 5)


def test_answers_that_agree_for_a_while_and_then_end():
    """On a trained model most truncated answers follow the untouched one, whole or in part."""
    vlm = vlmflow.load("scenes-llava", device="cpu", dtype=QUICK)
    policies = [Truncation(layer, 0) for layer in (0, 5, 7, 10)]
    policies.append(Truncation(2, 0.3, "uniform"))
    agreed = differed_late = 0
    for sample in find_task("scenes-caption").samples("test", 3):
        prompt = vlm.prepare(sample.pictures, sample.question)
        answers = shared_answers(vlm, [prompt], policies)[0]
        assert answers == one_by_one(vlm, prompt, policies, 64)
        agreed += answers.count(answers[0]) - 1
        differed_late += sum(ids != answers[0] and ids[:3] == answers[0][:3] for ids in answers)
    assert agreed
    assert differed_late


def test_generate_settings_of_the_model_are_kept():
    model, processor = tiny_llava(5)
    vlm = LVLM(model, processor)
    plain = shared_answers(vlm, [prompt_of(vlm)], [Truncation(1, 0)], max_new_tokens=8)[0]
    model.generation_config.repetition_penalty = 5.0
    policies = [Truncation(1, 0), Truncation(3, 4)]
    punished = shared_answers(vlm, [prompt_of(vlm)], policies, max_new_tokens=8)[0]
    assert punished == one_by_one(vlm, prompt_of(vlm), policies, 8)
    assert punished[:2] != plain


def test_an_answer_stops_at_the_end_token_and_at_its_length():
    model, processor = tiny_llava(6)
    vlm = LVLM(model, processor)
    policies = [Truncation(1, 0), Truncation(2, 0.5)]
    long = shared_answers(vlm, [prompt_of(vlm)], policies, max_new_tokens=7)[0]
    assert all(len(ids) == 7 for ids in long)
    assert [ids[:1] for ids in long] == shared_answers(
        vlm, [prompt_of(vlm)], policies, max_new_tokens=1
    )[0]
    model.generation_config.eos_token_id = long[0][3]
    ended = shared_answers(vlm, [prompt_of(vlm)], policies, max_new_tokens=7)[0]
    assert len(ended[0]) <= 3
    assert ended == one_by_one(vlm, prompt_of(vlm), policies, 7)


def test_the_model_is_left_as_found_even_when_it_fails():
    model, processor = tiny_llava(8)
    vlm = LVLM(model, processor)
    model.train()
    with pytest.raises(InputError, match="keep at most 16"):
        shared_answers(vlm, [prompt_of(vlm)], [Truncation(1, 0), Truncation(2, 17)])[0]
    with pytest.raises(InputError, match="layer=9"):
        shared_answers(vlm, [prompt_of(vlm)], [Truncation(9, 0)])[0]
    assert model.training
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    for module in [model, *vlm.decoder_layers]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        shared_answers(vlm, [prompt_of(vlm)], [Truncation(1, 0)])[0]


def test_a_prompt_with_an_answer_is_refused():
    vlm = LVLM(*tiny_llava(9))
    with pytest.raises(InputError, match="carries an answer"):
        shared_answers(vlm, [vlm.with_answer(prompt_of(vlm), "red")], [])[0]


def test_pictures_are_encoded_once():
    model, processor = tiny_llava(10)
    vlm = LVLM(model, processor)
    seen = []
    tower = model.model.vision_tower
    handle = tower.register_forward_hook(lambda *_: seen.append(1))
    shared_answers(vlm, [prompt_of(vlm)], [Truncation(1, 0), Truncation(2, 3), Truncation(3, 0)])[0]
    handle.remove()
    assert len(seen) == 1
