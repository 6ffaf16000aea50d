"""The training script: labels in the right places, and a killed run that ends the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaProcessor

from tests.support.number_format import quick_training
from training.scenes_llava import train as training
from training.scenes_llava.architecture import build_model, build_processor, build_tokenizer
from training.scenes_llava.conversations import (
    IGNORE,
    PATCH_LABELS,
    QUESTION_KINDS,
    Conversations,
    centre_labels,
    patch_labels,
)
from training.scenes_llava.curriculum import CURRICULA, LESSONS, Curriculum, Lesson
from training.scenes_llava.losses import hint_loss, probe_loss, side_ids, side_loss, spot_loss
from training.scenes_llava.probe_targets import probe_targets
from vlmflow.bundled.llava import IMAGE_SIZE, IMAGE_TOKEN, PATCH_SIZE
from vlmflow.bundled.shelf import BUNDLED
from vlmflow.scenes.generator import COLOURS, KINDS, draw_scene
from vlmflow.scenes.questions import (
    Question,
    bigger,
    compare,
    count,
    extreme,
    named,
    plural,
    presence,
    relation,
    side,
)
from vlmflow.scenes.tasks import scene_seed


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor(build_tokenizer())


def test_tokenizer_knows_the_words_and_splits_the_digits(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    for word in (*KINDS, *COLOURS):
        assert len(tokenizer.tokenize(f" {word}")) == 1, word
    assert tokenizer.tokenize(" 47")[-2:] == ["4", "7"]
    strange = "日本 <b>&\x00 zero​width"
    assert tokenizer.decode(tokenizer.encode(strange, add_special_tokens=False)) == strange


def test_labels_are_the_answers_one_position_early(processor: LlavaProcessor) -> None:
    data = Conversations(processor, LESSONS[-1], 12)
    kinds = set()
    for index in range(len(data)):
        item = data[index]
        tokenizer = processor.tokenizer
        assert (item["input_ids"] == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).sum() == 144
        for turn in range(int(item["turns"].max()) + 1):
            at = (item["turns"] == turn).nonzero()[:, 0]
            assert torch.equal(item["labels"][at], item["input_ids"][at + 1])
            assert tokenizer.decode(item["labels"][at].tolist()).endswith("</s>")
            before = tokenizer.decode(item["input_ids"][: at[0] + 1].tolist())
            assert before.endswith(" ASSISTANT:")
            kinds.add(QUESTION_KINDS[int(item["kinds"][at[0]])])
        assert ((item["labels"] != IGNORE) == (item["turns"] >= 0)).all()
    assert len(kinds) >= 7


def test_conversations_are_written_as_the_chat_template_writes_them(
    processor: LlavaProcessor,
) -> None:
    item = Conversations(processor, LESSONS[0], 1)[0]
    text = processor.tokenizer.decode(item["input_ids"].tolist())
    text = text.replace(IMAGE_TOKEN * 144, IMAGE_TOKEN).replace("<pad>", "")
    messages: list[dict[str, object]] = []
    for number, turn in enumerate(text.removeprefix("<s>").split("</s>")[:-1]):
        ask, reply = turn.removeprefix("USER: ").split(" ASSISTANT: ")
        content: object = ask
        if number == 0:
            question = ask.removeprefix("<image>\n ")
            content = [{"type": "image"}, {"type": "text", "text": question}]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": reply},
        ]
    assert processor.apply_chat_template(messages) == text


def test_patch_labels_name_what_is_under_each_patch() -> None:
    grid = IMAGE_SIZE // PATCH_SIZE
    for index in range(20):
        scene = draw_scene(scene_seed("conversation", "train", index))
        labels = dict(zip(PATCH_LABELS, patch_labels(scene), strict=True))
        left, top = (scene.width - scene.side) / 2, (scene.height - scene.side) / 2
        for thing in scene.objects:
            column = int((thing.centre[0] - left) / scene.side * grid)
            row = int((thing.centre[1] - top) / scene.side * grid)
            if thing.size == "big":
                patch = row * grid + column
                assert labels["kind"][patch] == KINDS.index(thing.kind) + 1
                assert labels["colour"][patch] == list(COLOURS).index(thing.colour) + 1
                assert (labels["column"][patch], labels["row"][patch]) == (column + 1, row + 1)
        assert (labels["kind"] == 0).any()


@pytest.mark.parametrize("own_tower", [True, False])
def test_a_killed_run_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_tower: bool
) -> None:
    for name, value in {
        "VISION_STEPS": 2,
        "VISION_BATCH": 2,
        "CHECKPOINT_EVERY": 2,
        "LOG_EVERY": 1,
    }.items():
        monkeypatch.setattr(training, name, value)
    # The run is killed inside a lesson, and goes on into one of other batches.
    lessons = (
        Lesson(3, captions=0.4, details=0.5, open=0.75, words=0.3, batch=2),
        Lesson(
            1, captions=0.3, places=0.3, doubts=0.2, open=0.35, comparisons=True, words=0.1,
            labels=0.1, axes=0.1, presences=0.1, names=0.1, counts=0.1, extremes=0.1,
            reasoning=0.8, sides=0.3, centres=0.2, verdicts=0.5, hints=0.5, mentions=0.5,
            spots=0.5, batch=3,
        ),
    )  # fmt: skip
    curriculum = Curriculum(lessons, {0: 1e-3}, own_tower)
    dtype = torch.bfloat16 if own_tower else torch.float32
    quick_training(monkeypatch)
    training.train(tmp_path / "whole", "cpu", curriculum, dtype=dtype)

    real = training.save_checkpoint

    def killed(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(tmp_path / "resumed", "cpu", curriculum, dtype=dtype)
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    monkeypatch.setattr(training, "save_checkpoint", real)
    training.train(tmp_path / "resumed", "cpu", curriculum, dtype=dtype)

    whole = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "resumed" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    assert not list(tmp_path.glob("*/checkpoint*"))
    log = (tmp_path / "resumed" / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in log[1:]] == [
        *(["vision", str(step)] for step in (1, 2) if own_tower),
        *(["conversation", str(step)] for step in (1, 2, 3, 4)),
    ]
    AutoProcessor.from_pretrained(tmp_path / "resumed")
    bundled = load_file(BUNDLED / "scenes-llava" / "model.safetensors")
    tower = [name for name in bundled if name.startswith("vision_tower.")]
    assert own_tower != all(torch.equal(bundled[name], whole[name]) for name in tower)


def test_the_ablation_has_no_loss_inside_the_decoder() -> None:
    for lesson in CURRICULA["answers-only"].lessons:
        assert (lesson.verdicts, lesson.hints, lesson.mentions, lesson.spots) == (0, 0, 0, 0)
    assert any(lesson.verdicts for lesson in CURRICULA["scenes-llava"].lessons)


def test_side_words_follow_the_place() -> None:
    """Image tokens that say "left" with the share of their place have the least loss."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 0)
    sides = side_ids(build_processor(tokenizer), torch.device("cpu"))
    assert [[tokenizer.decode(i) for i in pair] for pair in sides.tolist()] == [
        [" left", " right"],
        [" above", " below"],
    ]
    patches = torch.zeros(1, len(PATCH_LABELS), 1, dtype=torch.long)
    patches[:, 0], patches[:, 5], patches[:, 6] = 1, 2, 11  # left edge, near the lower edge
    weights = model.lm_head.weight.detach()

    def loss(*said: int) -> tuple[float, float]:
        token = weights[list(said)].sum(0)[None, None] * 100
        spots = torch.tensor([[[0.1, 0.9]]])
        losses = (
            side_loss(model, sides, token, patches),
            spot_loss(model, sides, token, spots),
        )
        return float(losses[0].detach()), float(losses[1].detach())

    left, right, above, below = sides.flatten().tolist()
    true = loss(left, below)
    for other in (loss(right, below), loss(left, above), loss(right, above)):
        assert true[0] < other[0]
        assert true[1] < other[1]
    nowhere = torch.full((1, 2, 2), -1.0)
    nowhere[0, 0] = torch.tensor([0.1, 0.9])
    both = weights[[left, right]][None] * 100
    once = spot_loss(model, sides, both[:, :1], nowhere[:, :1])
    torch.testing.assert_close(spot_loss(model, sides, both, nowhere), once)


def test_one_patch_holds_the_centre_of_each_object() -> None:
    grid = IMAGE_SIZE // PATCH_SIZE
    for index in range(20):
        scene = draw_scene(scene_seed("conversation", "train", index))
        marked = centre_labels(scene).reshape(grid, grid)
        labels = dict(zip(PATCH_LABELS, patch_labels(scene), strict=True))
        assert marked.sum() == len(scene.objects)
        for row, column in marked.nonzero().tolist():
            patch = row * grid + column
            if labels["kind"][patch]:
                assert (labels["column"][patch], labels["row"][patch]) == (column + 1, row + 1)


def drawn(make: Callable[..., Question | None], number: int = 30) -> Iterator[tuple[Any, Question]]:
    """Scenes with a question of one kind."""
    for index in range(number):
        scene = draw_scene(scene_seed("conversation", "train", index))
        question = make(scene, np.random.default_rng(index))
        if question is not None:
            yield scene, question


def test_sides_compare_two_places() -> None:
    for scene, question in drawn(side):
        words = question.text.removesuffix("?").replace(",", "").split()
        by_name = {f"{thing.colour} {thing.kind}": thing for thing in scene.objects}
        a, b = by_name[" ".join(words[2:4])], by_name[" ".join(words[-2:])]
        axis = 0 if "left" in words else 1
        less, more = ("left", "right") if axis == 0 else ("above", "below")
        assert question.answer == (less if a.centre[axis] < b.centre[axis] else more)


def test_exactly_the_right_option_is_present() -> None:
    for scene, question in drawn(presence):
        names = {f"{thing.colour} {thing.kind}" for thing in scene.objects}
        options = [choice for choice in question.choices if choice.split(" ", 1)[1] in names]
        assert options == [question.content]
        assert question.choices["ABCD".index(question.answer)] == question.content


def test_named_options_are_those_of_the_question() -> None:
    for _, question in drawn(named):
        stem = question.text.split("\n")[0]
        assert stem == f"Which of these is {question.content}?"
        assert question.choices["ABCD".index(question.answer)] == question.content


@pytest.mark.parametrize("make", [relation, count, compare, extreme, bigger, presence])
def test_words_of_the_middle_stand_where_they_are_true(
    processor: LlavaProcessor, make: Callable[..., Question | None]
) -> None:
    tokenizer = processor.tokenizer
    seen = 0
    for scene, question in drawn(make):
        tokens = tokenizer.encode(f"USER: {question.text} ASSISTANT:", add_special_tokens=False)
        targets = probe_targets(question, tokens, scene, tokenizer)
        ((place, hint),) = targets.hints.items()
        assert place == len(tokens) - 1
        hint_words = tokenizer.decode(hint).split()
        if make is bigger:
            assert hint_words == [question.text.split("\n")[0].removesuffix("?").split()[-1]]
        else:
            assert set(hint_words) <= set(question.content.split())  # type: ignore[union-attr]
        assert bool(targets.verdicts) == (make in (bigger, presence))
        for option, (end, verdict) in zip(question.choices, targets.verdicts.items(), strict=False):
            assert tokenizer.decode(tokens[: end + 1]).endswith(f". {option}")
            said = tokenizer.decode(verdict).strip()
            assert (said in ("yes", *hint_words)) == (option == question.content)
        for place, digit in targets.mentions.items():
            word = tokenizer.decode(tokens[place]).strip()
            colour = tokenizer.decode(tokens[place - 1]).strip()
            group = [
                thing for thing in scene.objects
                if (thing.colour == colour if word == "objects" else plural(thing.kind) == word)
            ]  # fmt: skip
            assert int(tokenizer.decode(digit)) == len(group)
            seen += 1
        for place, spot in targets.spots.items():
            colour, kind = (tokenizer.decode(token).strip() for token in tokens[place - 1 :][:2])
            (thing,) = (thing for thing in scene.objects if thing.category == (colour, kind))
            assert spot == scene.place(thing)
        if make is relation:
            assert len(targets.spots) == 2
    assert bool(seen) == (make in (count, compare))


def test_places_are_shares_of_the_central_square() -> None:
    scene = draw_scene(scene_seed("conversation", "train", 0))
    for thing in scene.objects:
        x, y = scene.place(thing)
        assert 0 < x < 1
        assert 0 < y < 1
        assert x * scene.side + (scene.width - scene.side) / 2 == pytest.approx(thing.centre[0])
        assert y * scene.side + (scene.height - scene.side) / 2 == pytest.approx(thing.centre[1])


def test_words_of_the_middle_are_read_with_norm_and_head() -> None:
    """A state that is a word's embedding has less loss for that word than for another."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 0)
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in (" yes", " no"))
    states = model.lm_head.weight.detach()[[yes, yes]][None]
    for first, share in ((yes, 1.0), (no, 0.0)):
        loss, right = probe_loss(model, states, torch.tensor([[first, IGNORE]]))
        assert right == share
        hinted = hint_loss(model, states, torch.tensor([[[first, IGNORE], [IGNORE, IGNORE]]]))
        assert float(loss.detach()) == pytest.approx(float(hinted.detach()))
    joint_loss = hint_loss(model, states, torch.tensor([[[yes, no], [IGNORE, IGNORE]]]))
    single_losses = [
        float(hint_loss(model, states[:, :1], torch.tensor([[[w]]])).detach()) for w in (yes, no)
    ]
    assert float(joint_loss.detach()) == pytest.approx(sum(single_losses) / 2)
