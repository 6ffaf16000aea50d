"""Tasks give the same samples every time, score by their metric, and refuse bad files."""

from __future__ import annotations

import itertools
import json

import pytest

from vlmflow.errors import InputError
from vlmflow.scenes.tasks import ALL_TASKS, GROUNDING, sample
from vlmflow.tasks.base import SPLITS
from vlmflow.tasks.folder import FolderTask
from vlmflow.tasks.registry import find_task
from vlmflow.tasks.scenes import ScenesTask


@pytest.mark.parametrize("name", ALL_TASKS)
def test_scenes_are_the_same_every_time_and_splits_share_none(name):
    samples = {split: list(find_task(name).samples(split, 6)) for split in SPLITS}
    for split in SPLITS:
        again = list(find_task(name).samples(split, 6))
        assert [sample.question for sample in again] == [
            sample.question for sample in samples[split]
        ]
        assert [sample.key for sample in samples[split]] == [f"{split}-{i}" for i in range(6)]
    pictures = [sample.pictures[0].tobytes() for split in SPLITS for sample in samples[split]]
    assert len(set(pictures)) == 12


@pytest.mark.parametrize("name", sorted({*ALL_TASKS} - {GROUNDING}))
def test_right_answers_score_1_and_wrong_ones_0(name):
    chosen = find_task(name)
    samples = list(chosen.samples("test", 5))
    answers = [sample.references[0] for sample in samples]
    assert [chosen.score(*pair) for pair in zip(samples, answers, strict=True)] == [1.0] * 5
    assert [chosen.score(sample, "a unicorn") for sample in samples] == [0.0] * 5
    assert chosen.summary(samples, answers)[chosen.metric] == 1.0
    assert chosen.summary(samples, ["a unicorn"] * 5)[chosen.metric] == 0.0


def test_boxes_are_scored_by_their_overlap():
    grounding = find_task(GROUNDING)
    samples = list(grounding.samples("test", 30))
    answers = [one.references[0] for one in samples]
    # Right up to the rounding to hundredths, in pictures of any shape.
    assert min(grounding.scores(samples, answers)) > 0.8
    assert {"accuracy at IoU 0.5": 1.0}.items() <= grounding.summary(samples, answers).items()
    drawn = sample(GROUNDING, "test", 0)
    x0, y0, x1, y1 = (100 * edge for edge in drawn.scene.in_square(drawn.task_question.box))
    half = f"It is at ({x0}, {y0}, {(x0 + x1) / 2}, {y1})."
    assert grounding.score(samples[0], half) == pytest.approx(0.5)
    beside = f"[{x1 + 1},{y0},{x1 + 9},{y1}]"
    for wrong in ("a unicorn", "[5]", "[50,50,40,60]", "12 30 25 44", beside):
        assert grounding.score(samples[0], wrong) == 0


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
    summary = captions.summary([sample], [caption])
    assert summary["objects named"] == 1.0
    assert 0 < summary["CHAIRi"] <= 1 / objects
    assert summary["CHAIRs"] == 1.0


def test_choices_groups_and_boxes_come_along():
    (reasoning,) = find_task("scenes-reasoning").samples("test", 1)
    assert reasoning.group == "relation"
    assert len(reasoning.choices) == 4
    existence = list(find_task("scenes-existence").samples("test", 6))
    assert {sample.group for sample in existence} == {"random", "popular", "adversarial"}
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
    assert [sample.key for sample in (first, second, third)] == ["1", "k", "3"]
    assert (third.choices, third.group) == (("one", "two"), "letters")
    assert [sample.key for sample in chosen.samples("test", 1)] == ["1"]
    assert chosen.score(first, " a  CAT.") == 1
    assert chosen.score(first, "a cat sits") == 0
    assert chosen.score(second, "They are.") == 1


@pytest.mark.parametrize(
    ("images", "calibration"),
    [
        ("abcdefg", "25"),  # every third picture
        ("abcabcd", "25"),  # with all its questions
        ("aaabbcc", "56"),
        ("aaaaaaa", "25"),  # too few pictures: every third line
        ("aabbabb", "25"),
    ],
)
def test_every_third_picture_is_for_calibration_where_no_line_says(tmp_path, images, calibration):
    lines = [
        {"image": f"{name}.png", "question": str(number), "answer": "x"}
        for number, name in enumerate(images)
    ]
    chosen = FolderTask(jsonl(tmp_path / "plain.jsonl", lines))
    splits = {split: "".join(s.question for s in chosen.samples(split)) for split in SPLITS}
    assert splits["calibration"] == calibration
    assert sorted(splits["calibration"] + splits["test"]) == list("0123456")
    # Questions about one picture are not independent: intervals keep them together.
    clusters = {s.question: s.cluster for split in SPLITS for s in chosen.samples(split)}
    assert [clusters[str(number)] for number in range(7)] == [f"{name}.png" for name in images]


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


def rows_of(tmp_path, text, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    task = FolderTask(path)
    return [sample for split in SPLITS for sample in task._splits[split]]


LINE = '{"image": "a.png", "question": "?", "answer": %s}'


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        ("0", ("0",)),
        ("1.50", ("1.50",)),
        ("-0", ("-0",)),
        ("[1, 2]", ("1", "2")),
        ("9" * 5000, ("9" * 5000,)),
        ('"a\u2028b\u2029c\u0085d\u000be"', None),  # a raw control character is not JSON
        ('"a\u2028b\u2029c\u0085d"', ("a\u2028b\u2029c\u0085d",)),
        (r'"two\nlines"', ("two\nlines",)),
        (r'"\ud83d\ude00"', ("\U0001f600",)),
        ('" spaced "', (" spaced ",)),
    ],
)
def test_jsonl_is_read_as_it_is(tmp_path, answer, references):
    text = LINE % answer
    if references is None:
        with pytest.raises(InputError, match="is not JSON"):
            rows_of(tmp_path, text)
        return
    for ending in ("", "\n", "\r\n", "\r\n\r\n \t\n"):
        (sample,) = rows_of(tmp_path, text + ending)
        assert sample.references == references


def test_csv_is_read_as_it_is(tmp_path):
    text = (
        "image,question,answer,key\r\n"
        'a.png,"Which?\nA. left\r\nB. right",0,"a ""key"""\r\n'
        "\r\n"
        "b c.png,\u2028\u0085one line,yes | they are,\r\n"
        'd.png,"last, without an end of line",x,'
    )
    third, first, second = rows_of(tmp_path, text, "rows.csv")  # the third calibrates
    assert first.question == "Which?\nA. left\r\nB. right"
    assert (first.references, first.key) == (("0",), 'a "key"')
    assert second.question == "\u2028\u0085one line"
    assert (second.references, second.key) == (("yes", "they are"), "6")  # where it begins
    assert third.question == "last, without an end of line"
    (mac,) = rows_of(tmp_path, "image,question,answer\ra.png,?,x\r", "mac.csv")
    assert mac.references == ("x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no questions in it"),
        ("{", "line 1 of .* is not JSON"),
        ("[1]", "line 1 of .* is not a JSON object"),
        ("\n\n3", "line 3 of .* is not a JSON object"),
        ('{"image": "a.png", "question": "?"}', "line 1 of .*'answer' is missing"),
        (LINE % "null", "'answer' is missing"),
        (LINE % "[]", "'answer' is missing"),
        (LINE % '""', "'answer' has an empty value"),
        (LINE % '[""]', "'answer' has an empty value"),
        (LINE % '["a", " "]', "'answer' has an empty value"),
        (LINE % "true", "neither a text nor a list"),
        (LINE % '{"a": 1}', "neither a text nor a list"),
        (LINE % '["a", null]', "neither a text nor a list"),
        (LINE % "NaN", "NaN is not a number"),
        (LINE % "-Infinity", "-Infinity is not a number"),
        (LINE % "1e999", "1e999 is too large for a number"),
        (LINE % r'"\ud800"', r"'\\ud800' is half of a surrogate pair"),
        (LINE % r'["a", "\udc80 b"]', r"'\\udc80' is half of a surrogate pair"),
        (LINE % ("[" * 100_000 + "]" * 100_000), "line 1 of .* is nested too deeply"),
        (LINE % '"a", "answer": "b"', "'answer' is given twice"),
        (LINE % '"a", "colour": 1', "'colour' is not a field"),
        (LINE % '"a", "split": "dev"', "'dev' is neither"),
        (LINE % '"a", "split": ["test"]', "is neither calibration nor test"),
        (LINE % '"a", "key": ["k"]', "'key' is not text"),
        (LINE % '"a", "key": ""', "'key' is empty"),
        (LINE % '"a", "group": {}', "'group' is not text"),
        ('{"image": "a.png", "question": ["?"], "answer": "a"}', "'question' is not text"),
        ('{"image": "a.png", "question": " ", "answer": "a"}', "'question' is empty"),
        ('{"image": 3, "question": "?", "answer": "a"}', "image '3' is not the name of a file"),
        (r'{"image": "a\u0000.png", "question": "?", "answer": "a"}', "is not the name of a file"),
        (
            '{"image": "a", "question": "?", "answer": "a", "key": "2"}\n'
            '{"image": "a", "question": "?", "answer": "a"}',
            "line 2 of .*: key '2' stands on line 1 already",
        ),
        (b'{"image": "\xff"}', "it is not UTF-8 text"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        rows_of(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,question,answer\na.png,?,x,y\n", "line 2 of .* has 4 cells, but the header has 3"),
        ("image,question,answer\na.png,?\n", "line 2 of .* has 2 cells, but the header has 3"),
        ("image,image,answer\n", "'image' heads two columns"),
        ("image,question,answer\na.png,?,\n", "'answer' is missing"),
        ("image,question,answer\na.png,?,yes|\n", "'answer' has an empty value"),
        ("image,question,answer\na.png|,?,yes\n", "'image' has an empty value"),
        ('image,question,answer\n\na.png,?,x\nb.png,"?,x\n', "line 4 of .* is not CSV"),
        ('image,question,answer\na.png,"?"?,x\n', "line 2 of .* is not CSV"),
        (f"image,question,answer\na.png,?,{'x' * 200_000}\n", r"larger than .* \.jsonl files take"),
        ("image;question;answer\na.png;?;x\n", "'image;question;answer' is not a field"),
        ("image,question,answer\n", "no questions in it"),
    ],
)
def test_rows_of_csv_that_are_wrong_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        rows_of(tmp_path, text, "rows.csv")
    assert "\n" not in str(error.value)


def test_what_is_not_a_task_is_refused(tmp_path):
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
