"""Tasks give the same samples every time, score by their metric, and refuse bad files."""

from __future__ import annotations

import itertools
import json

import pytest

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import TASKS
from vlmflow.tasks.base import SPLITS
from vlmflow.tasks.folder import FolderTask
from vlmflow.tasks.registry import find_task
from vlmflow.tasks.scenes import ScenesTask


@pytest.mark.parametrize("name", TASKS)
def test_scenes_are_the_same_every_time_and_splits_share_none(name):
    found = {split: list(find_task(name).samples(split, 6)) for split in SPLITS}
    for split in SPLITS:
        again = list(find_task(name).samples(split, 6))
        assert [one.question for one in again] == [one.question for one in found[split]]
        assert [one.key for one in found[split]] == [f"{split}-{i}" for i in range(6)]
    pictures = [one.pictures[0].tobytes() for split in SPLITS for one in found[split]]
    assert len(set(pictures)) == 12


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_score_1_and_wrong_ones_0(name):
    chosen = find_task(name)
    samples = list(chosen.samples("test", 5))
    answers = [one.references[0] for one in samples]
    assert [chosen.score(*pair) for pair in zip(samples, answers, strict=True)] == [1.0] * 5
    assert [chosen.score(one, "a unicorn") for one in samples] == [0.0] * 5
    assert chosen.summary(samples, answers)[chosen.metric] == 1.0
    assert chosen.summary(samples, ["a unicorn"] * 5)[chosen.metric] == 0.0


def test_captions_are_scored_with_chair_too():
    captions = ScenesTask("scenes-caption")
    (sample,) = captions.samples("test", 1)
    invented = next(
        f"{colour} {kind}"
        for colour, kind in itertools.product(("red", "blue", "green"), ("star", "ring", "cross"))
        if f"{colour} {kind}" not in sample.references[0]
    )
    caption = f"{sample.references[0]} And a {invented}."
    objects = sample.references[0].count(" a ") + 1
    found = captions.summary([sample], [caption])
    assert found["objects named"] == 1.0
    assert 0 < found["CHAIRi"] <= 1 / objects
    assert found["CHAIRs"] == 1.0


def test_choices_groups_and_boxes_come_along():
    (reasoning,) = find_task("scenes-reasoning").samples("test", 1)
    assert reasoning.group == "relation"
    assert len(reasoning.choices) == 4
    existence = list(find_task("scenes-existence").samples("test", 6))
    assert {one.group for one in existence} == {"random", "popular", "adversarial"}
    (reading,) = find_task("scenes-reading").samples("test", 1)
    assert reading.box is not None


LINES = [
    {"image": "a.png", "question": "What is it?", "answer": "A cat"},
    {"image": ["a.png", "b.png"], "question": "Same?", "answer": ["yes", "they are"], "key": "k"},
    {
        "image": "b.png", "question": "Which?", "answer": "B", "choices": ["one", "two"],
        "split": "calibration", "group": "letters",
    },
]  # fmt: skip


def jsonl(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def test_a_folder_of_questions(tmp_path):
    chosen = find_task(str(jsonl(tmp_path / "pets.jsonl", LINES)))
    assert chosen.name == "pets"
    first, second = chosen.samples("test")
    (third,) = chosen.samples("calibration")
    assert first.pictures == (tmp_path / "a.png",)
    assert second.pictures == (tmp_path / "a.png", tmp_path / "b.png")
    assert [one.key for one in (first, second, third)] == ["1", "k", "3"]
    assert (third.choices, third.group) == (("one", "two"), "letters")
    assert [one.key for one in chosen.samples("test", 1)] == ["1"]
    assert chosen.score(first, " a  CAT.") == 1
    assert chosen.score(first, "a cat sits") == 0
    assert chosen.score(second, "They are.") == 1


def test_every_third_line_is_for_calibration_where_none_says(tmp_path):
    lines = [{"image": "a.png", "question": f"{n}?", "answer": "x"} for n in range(7)]
    chosen = FolderTask(jsonl(tmp_path / "plain.jsonl", lines))
    assert [one.question for one in chosen.samples("calibration")] == ["2?", "5?"]
    assert [one.question for one in chosen.samples("test")] == ["0?", "1?", "3?", "4?", "6?"]


def test_csv_says_the_same_as_jsonl(tmp_path):
    path = tmp_path / "pets.csv"
    path.write_text(
        "image,question,answer,key,choices,split,group\n"
        "a.png,What is it?,A cat,,,,\n"
        'a.png|b.png,"Same?",yes|they are,k,,,\n'
        "b.png,Which?,B,3,one|two,calibration,letters\n",
        "utf-8-sig",
    )
    table, lines = FolderTask(path), FolderTask(jsonl(tmp_path / "pets.jsonl", LINES))
    for split in SPLITS:
        for a, b in zip(table.samples(split), lines.samples(split), strict=True):
            assert (a.pictures, a.question, a.references) == (b.pictures, b.question, b.references)
            assert (a.choices, a.group) == (b.choices, b.group)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no questions in it"),
        ("{", "line 1 of .* is not JSON"),
        ("[1]", "line 1 of .* is not a JSON object"),
        ('{"image": "a.png", "question": "?"}', "line 1 of .*'answer' is missing"),
        ('{"image": "a.png", "question": "?", "answer": true}', "neither a text nor a list"),
        (
            '{"image": "a.png", "question": "?", "answer": "a", "colour": 1}',
            "'colour' is not a field",
        ),
        ('{"image": "a.png", "question": "?", "answer": "a", "split": "dev"}', "'dev' is neither"),
        ('{"image": "a.png", "question": ["?"], "answer": "a"}', "'question' is not text"),
        (
            '{"image": "a", "question": "?", "answer": "a", "key": "2"}\n'
            '{"image": "a", "question": "?", "answer": "a"}',
            "line 2 of .*: key '2' stands on line 1 already",
        ),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path, text, words):
    path = tmp_path / "wrong.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        FolderTask(path)


def test_what_is_no_task_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there are scenes-reasoning, .*, or give a \.jsonl"):
        find_task("scenes-juggling")
    with pytest.raises(InputError, match="cannot be read"):
        find_task(str(tmp_path / "missing.jsonl"))
    (tmp_path / "notes.txt").write_text("{}")
    with pytest.raises(InputError, match=r"neither \.jsonl nor \.csv"):
        FolderTask(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="split='train' is unknown"):
        next(find_task("scenes-reading").samples("train", 1))
    only_test = FolderTask(jsonl(tmp_path / "pets.jsonl", LINES[:1]))
    with pytest.raises(InputError, match='give lines a "split": "calibration"'):
        next(only_test.samples("calibration"))
