"""Training on a pretrained decoder: turns that share a picture, lessons, a killed run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.tiny import tiny_llava
from training import pretrained_decoder
from training.packing import IGNORE, Examples, collate, may_look
from training.pictures import FixedPictures
from training.smollm2_models import Unfinished
from training.turn_scores import exact_turns, turn_ids, turn_loss
from training.turns import KINDS, MAKERS, MIXTURE, WORDS_FIRST, shares_at
from vlmflow.bundled.smollm2 import CHAT_TEMPLATE
from vlmflow.scenes.generator import draw_scene
from vlmflow.tasks.metrics.choices import chosen_letter

LENGTH = 560


def unfinished() -> Unfinished:
    model, processor = tiny_llava(1)
    processor.chat_template = CHAT_TEMPLATE
    tower = model.model.vision_tower
    image_text = processor.image_token * model.config.image_seq_length
    return Unfinished(
        processor=processor,
        pictures=FixedPictures(processor.image_processor, image_text),
        image_token_id=model.config.image_token_index,
        features=lambda picture: tower(picture["pixel_values"]).last_hidden_state[:, 1:],
        projector=model.model.multi_modal_projector,
        language_model=model.model.language_model,
    )


def examples(conversations: float) -> Examples:
    tiny = unfinished()
    return Examples(tiny.processor, tiny.pictures, LENGTH, 2, 0, 4, conversations, 3, MIXTURE)


@pytest.mark.parametrize("conversations", [0.0, 1.0])
def test_a_turn_is_answered_as_if_it_stood_alone_or_after_those_before_it(conversations):
    example = examples(conversations)[1]
    batch = collate([example])
    language = unfinished().language_model
    mask = torch.where(may_look(batch["blocks"]), 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        packed = language(
            batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"]
        ).last_hidden_state[0]
    turns = example["turns"]
    assert turns.max() >= 1
    shared = example["blocks"] == 0
    for turn in range(int(turns.max()) + 1):
        labelled = turns == turn
        end = int(labelled.nonzero().max()) + 1
        own = shared if conversations else shared | (example["blocks"] == turn + 1)
        seen = own & (torch.arange(LENGTH) < end + 1)
        with torch.no_grad():
            alone = language(example["input_ids"][seen][None]).last_hidden_state[0]
        torch.testing.assert_close(packed[labelled], alone[labelled[seen]], rtol=1e-4, atol=1e-4)
        # Labels are the tokens of the answer, up to the end of its turn.
        following = example["input_ids"].roll(-1)[labelled]
        assert torch.equal(following, example["labels"][labelled])
        answer = unfinished().processor.tokenizer.decode(following)
        assert answer.endswith("<|im_end|>")
    assert (example["labels"] != IGNORE).equal(turns >= 0)


def test_first_turns_are_written_as_the_chat_template_writes_them():
    tiny = unfinished()
    example = examples(0.0)[0]
    tokenizer = tiny.processor.tokenizer
    first = (example["blocks"] == 0) | (example["blocks"] == 1)
    text = tokenizer.decode(example["input_ids"][first])
    question = text.split("user\n")[1].split("\n", 1)[1].split("<|im_end|>")[0]
    prompt = tiny.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
    )
    assert text.startswith(prompt.replace(tiny.processor.image_token, tiny.pictures.text))


def test_every_step_has_its_mixture():
    for step in (0, 1, 399, 400, 1200, 1350, 1500, 1501, 5000):
        assert sum(shares_at(step, MIXTURE).values()) == pytest.approx(1)
    # What ran up to step 1,500, and nothing of coordinates or letters alone after it.
    after = shares_at(1501, MIXTURE)
    assert all(after[kind] == 0 for kind in ("relation", "relation_steps", "named", "places"))
    assert after["relation_lettered"] > 0
    assert set().union(*MIXTURE.values()) <= set(KINDS)


def test_models_trained_later_are_asked_all_that_tasks_ask():
    for step in (0, 100, 250, 599, 600, 5000):
        assert sum(shares_at(step, WORDS_FIRST).values()) == pytest.approx(1)
    last, from_there = shares_at(600, WORDS_FIRST), shares_at(1501, MIXTURE)
    assert last == from_there


def test_letters_after_words_are_read_as_the_right_option():
    seen = 0
    for index in range(40):
        rng = np.random.default_rng(index)
        scene = draw_scene((0, 5, index, 0))
        for kind in KINDS:
            question = MAKERS[kind](scene, rng) if kind.endswith("_lettered") else None
            if question is None:
                continue
            content, letter = question.answer.rsplit(": ", 1)
            assert question.choices["ABCD".index(letter)] == content
            assert question.text.endswith("Answer with the letter.")
            assert chosen_letter(question.answer, question.choices) == letter
            seen += 1
    assert seen > 100


def test_loss_and_scores_of_turns():
    labelled = torch.tensor([[True, True, True, False], [False, True, False, False]])
    turns = turn_ids(labelled, torch.tensor([[0, 0, 1, -1], [-1, 0, -1, -1]]))
    right = torch.tensor([True, False, True, True])
    kinds = torch.tensor([5, 5, 6, 7])
    assert sorted(exact_turns(right, turns, kinds)) == [(5, 0.0), (6, 1.0), (7, 1.0)]
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = torch.tensor([0.5**0.5, 0.5**0.5, 1.0, 1.0])
    lengths = torch.tensor([2, 2, 1, 1])
    wanted = (weights * losses).sum() / weights.sum()
    torch.testing.assert_close(turn_loss(logits, labels, lengths), wanted)


def test_a_killed_run_continues_where_it_stopped(tmp_path: Path, monkeypatch) -> None:
    fixed = {"tower.weight": torch.ones(2)}
    monkeypatch.setitem(
        pretrained_decoder.BUILDERS,
        "scenes-smollm2",
        lambda _: replace(unfinished(), fixed=fixed),
    )
    recipe = pretrained_decoder.Recipe(rank=2, length=LENGTH, batch=2, steps=4, decay=2, warm_up=1)
    monkeypatch.setitem(pretrained_decoder.RECIPES, "scenes-smollm2", recipe)
    monkeypatch.setattr(pretrained_decoder, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)  # needs a C++ compiler
    pretrained_decoder.train("scenes-smollm2", tmp_path / "whole")
    pretrained_decoder.train("scenes-smollm2", tmp_path / "resumed", until=2)
    half = load_file(tmp_path / "resumed" / "tuned.safetensors")
    pretrained_decoder.train("scenes-smollm2", tmp_path / "resumed")
    whole = load_file(tmp_path / "whole" / "tuned.safetensors")
    resumed = load_file(tmp_path / "resumed" / "tuned.safetensors")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    changed: list[Any] = [name for name in whole if not torch.equal(whole[name], half[name])]
    assert len(changed) == len(whole) - len(fixed)
    assert torch.equal(whole["tower.weight"], fixed["tower.weight"].bfloat16())
    log = (tmp_path / "resumed" / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "1", "2", "3", "4"]
    # What was trained alone, without a checkpoint, is enough to go on, after another warm-up.
    (tmp_path / "alone").mkdir()
    save_file(half, tmp_path / "alone" / "tuned.safetensors", metadata={"step": "2"})
    pretrained_decoder.train("scenes-smollm2", tmp_path / "alone", until=3)
    log = (tmp_path / "alone" / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "3"]
    recipe = pretrained_decoder.RECIPES["scenes-smolvlm"]
    assert recipe.rate(1100) == 1
    assert recipe.rate(1100, begun=1080) == 20 / recipe.warm_up
