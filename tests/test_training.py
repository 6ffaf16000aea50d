"""The training script: labels in the right places, and a killed run that ends the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaProcessor

from vlmflow.scenes import train as training
from vlmflow.scenes.architecture import (
    IMAGE_SIZE,
    IMAGE_TOKEN,
    PATCH_SIZE,
    build_model,
    build_processor,
    build_tokenizer,
)
from vlmflow.scenes.conversations import (
    IGNORE,
    PATCH_LABELS,
    QUESTION_KINDS,
    Conversations,
    Lesson,
    patch_labels,
)
from vlmflow.scenes.generator import COLOURS, KINDS, draw_scene
from vlmflow.scenes.losses import side_ids, side_loss
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
    data = Conversations(processor, training.LESSONS[-1], 12)
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
    item = Conversations(processor, training.LESSONS[0], 1)[0]
    text = processor.tokenizer.decode(item["input_ids"].tolist())
    text = text.replace(IMAGE_TOKEN * 144, IMAGE_TOKEN).replace("<pad>", "")
    messages: list[dict[str, object]] = []
    for number, turn in enumerate(text.removeprefix("<s>").split("</s>")[:-1]):
        ask, reply = turn.removeprefix("USER: ").split(" ASSISTANT: ")
        content: object = ask
        if number == 0:
            words = ask.removeprefix("<image>\n ")
            content = [{"type": "image"}, {"type": "text", "text": words}]
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


def test_a_killed_run_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "VISION_STEPS": 2,
        "VISION_BATCH": 2,
        "BATCH": 2,
        "CHECKPOINT_EVERY": 2,
        "LOG_EVERY": 1,
        # The run is killed where one lesson ends and the next begins.
        "LESSONS": (
            Lesson(2, 256, captions=0.4, descriptions=0.2, details=0.5, open=0.75, words=0.3),
            Lesson(
                2,
                256,
                captions=0.3,
                places=0.3,
                doubts=0.2,
                open=0.35,
                comparisons=True,
                words=0.1,
                digits=True,
                labels=0.1,
                sides=0.3,
                slope=2.0,
            ),
        ),
    }.items():
        monkeypatch.setattr(training, name, value)
    training.train(tmp_path / "whole", "cpu", steps=4)

    real = training.save_checkpoint

    def killed(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(tmp_path / "resumed", "cpu", steps=4)
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    monkeypatch.setattr(training, "save_checkpoint", real)
    training.train(tmp_path / "resumed", "cpu", steps=4)

    whole = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "resumed" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    assert not list(tmp_path.glob("*/checkpoint*"))
    log = (tmp_path / "resumed" / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in log[1:]] == [
        *(["vision", str(step)] for step in (1, 2)),
        *(["conversation", str(step)] for step in (1, 2, 3, 4)),
    ]
    AutoProcessor.from_pretrained(tmp_path / "resumed")


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
    words = model.lm_head.weight.detach()

    def loss(*said: int) -> float:
        token = words[list(said)].sum(0)[None, None] * 100
        return float(side_loss(model, sides, token, patches, 1.0).detach())

    left, right, above, below = sides.flatten().tolist()
    assert loss(left, below) < loss(right, below)
    assert loss(left, below) < loss(left, above)
    assert loss(left, below) < loss(right, above)
