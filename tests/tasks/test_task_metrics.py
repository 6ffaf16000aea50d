"""Metrics of the hub's data sets, against values worked out by hand."""

from __future__ import annotations

import math
import stat
import sys
from shutil import which

import pytest

from vlmflow.errors import InputError
from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.chair import chair
from vlmflow.tasks.metrics.choices import ChosenOption
from vlmflow.tasks.metrics.cider import Cider, CocoCaptions, tokenized
from vlmflow.tasks.metrics.coco_objects import PHRASES, SYNONYMS, coco_mentions
from vlmflow.tasks.metrics.direct_answer import DirectAnswer
from vlmflow.tasks.metrics.exact import ExactMatch
from vlmflow.tasks.metrics.mme import COGNITION, PERCEPTION, Mme
from vlmflow.tasks.metrics.pope import YesNo, exact_yes_or_no, official_yes_or_no, yes_or_no
from vlmflow.tasks.metrics.vqa import VqaAccuracy, normalise

needs_java = pytest.mark.skipif(which("java") is None, reason="Java is not installed")


def question_sample(*references, choices=(), group="", cluster="", key="0"):
    return TaskSample(key, (), "?", references, choices, group=group, cluster=cluster)


# Multiple choice


def test_a_chosen_option_is_right_or_wrong():
    sample = question_sample("B", choices=("cat", "dog"))
    answers = ["B", "dog", "A", "cat or dog"]
    assert [ChosenOption().score(sample, answer) for answer in answers] == [1, 1, 0, 0]


# Short answers


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("The Red-Bus", "red bus"),
        ("a well-known - yes", "wellknown yes"),  # a hyphen beside a space removes all of them
        ("stop / go", "stop go"),
        ("1,000", "1000"),
        ("$3.50", "$3.50"),
        ("10 a.m.", "10 am"),
        ("dont know", "don't know"),
        ("Couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Bob's", "bob 's"),
        ("what?\nno\tidea", "what no idea"),
        ("an", ""),
        ("twenty one", "twenty 1"),
    ],
)
def test_vqa_answers_are_normalised(answer, normal):
    assert normalise(answer) == normal


@pytest.mark.parametrize(("annotators", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_vqa_accuracy_leaves_every_annotator_out_once(annotators, score):
    sample = question_sample(*["Two"] * annotators, *["dark red"] * (10 - annotators))
    assert VqaAccuracy().score(sample, "2.") == pytest.approx(score)


@pytest.mark.parametrize(("annotators", "score"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (9, 1)])
def test_direct_answers_leave_none_out(annotators, score):
    sample = question_sample(*["Bus"] * annotators, *["two buses"] * (10 - annotators))
    assert DirectAnswer().score(sample, " bus.") == pytest.approx(score)
    assert DirectAnswer().score(sample, "the bus") == 0


def test_exact_match_ignores_case_and_punctuation_alone():
    sample = question_sample("t-shirt")
    answers = ["T-shirt.", "tshirt", " t-shirt ", "a t-shirt", "shirt"]
    assert [ExactMatch().score(sample, answer) for answer in answers] == [1, 1, 1, 0, 0]


# Yes and no


@pytest.mark.parametrize(
    ("answer", "loose", "exact"),
    [
        ("Yes", "yes", "yes"),
        (" no\n", "no", "no"),
        ("Yes.", "yes", ""),
        ("Yes, there is. It is not large.", "yes", ""),
        ("There is not a dog", "no", ""),
        ("No, yes", "no", ""),
        ("Nothing to see", "", ""),
        ("a dog", "", ""),
        ("", "", ""),
    ],
)
def test_yes_and_no_are_read_loosely_and_exactly(answer, loose, exact):
    assert (yes_or_no(answer), exact_yes_or_no(answer)) == (loose, exact)


def test_pope_figures():
    samples = [question_sample(answer) for answer in ("yes", "yes", "yes", "no", "no", "no")]
    answers = ["Yes", "yes.", "No, there is no dog.", "No", "Yes, there is.", "A dog"]
    metric = YesNo()
    assert metric.scores(samples, answers) == [1, 1, 0, 1, 0, 0]
    assert metric.figures(samples, answers) == pytest.approx(
        {
            "precision": 2 / 3,
            "recall": 2 / 3,
            "F1": 2 / 3,
            "yes ratio": 1 / 2,
            "official accuracy": 3 / 6,  # the dog is a yes, too
            "official precision": 2 / 4,
            "official recall": 2 / 3,
            "official F1": 4 / 7,
            "official yes ratio": 4 / 6,
            "exact accuracy": 2 / 6,
            "exact precision": 1,
            "exact recall": 1 / 3,
            "exact F1": 1 / 2,
            "exact yes ratio": 1 / 6,
            "neither": 1 / 6,
        }
    )
    silent = metric.figures(samples, [""] * 6)
    assert silent["neither"] == 1
    assert (silent["precision"], silent["recall"], silent["F1"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "official"),
    [
        ("No, there is none.", "no"),
        ("There is, no doubt, a dog", "no"),
        ("It does not.", "no"),
        ("Yes. It is not small.", "yes"),
        ("NO", "yes"),
        ("No!", "yes"),
        ("a dog", "yes"),
        ("", "yes"),
    ],
)
def test_popes_script_is_followed_to_the_letter(answer, official):
    assert official_yes_or_no(answer) == official


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Yes.", 1), ("y", 1), ("yes it is", 1), ("No", 0), ("It is, yes", 0), ("", 0)],
)
def test_mme_reads_the_first_letters(answer, right):
    assert Mme().score(question_sample("Yes"), answer) == right


def test_mme_sums():
    def pair(group, picture):
        return [question_sample(answer, group=group, cluster=picture) for answer in ("Yes", "No")]

    samples = pair("existence", "a") + pair("existence", "b") + pair("OCR", "c")
    samples += pair("code_reasoning", "d") + pair("count", "e")[:1]
    answers = ["Yes", "No", "Yes", "Yes", "yes", "no", "No", "Yes", "Yes"]
    metric = Mme()
    assert metric.scores(samples, answers) == [1, 1, 1, 0, 1, 1, 0, 0, 1]
    # existence: 100 * 3/4 + 100 * 1/2; count: one question, whose pair is not there
    assert metric.figures(samples, answers) == pytest.approx(
        {
            "accuracy+": 2 / 4,
            "perception": 125 + 100 + 200,
            "cognition": 0,
            "existence": 125,
            "count": 100,
            "OCR": 200,
            "code_reasoning": 0,
        }
    )


def test_mme_reaches_its_published_maxima():
    samples = [
        question_sample("Yes", group=group, cluster=group)
        for group in PERCEPTION + COGNITION
        for _ in "ab"
    ]
    figures = Mme().figures(samples, ["yes"] * len(samples))
    assert (figures["perception"], figures["cognition"]) == (2000, 800)
    with pytest.raises(InputError, match=r"no category 'taste'.*; there are existence, "):
        Mme().figures([question_sample("Yes", group="taste")], ["yes"])


# Captions


def test_there_are_words_for_eighty_categories_and_none_has_two():
    assert len(SYNONYMS) == 80
    words = [word for several in SYNONYMS.values() for word in several.split(", ")]
    assert len(words) == len(set(words))
    assert all(PHRASES[word] for word in words)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("A man and two women.", ["person", "person"]),
        ("hot-dogs for dogs", ["hot dog", "dog"]),
        ("a teddy bear with a bear", ["teddy bear", "bear"]),
        ("people at a train station", ["person"]),
        ("knives, mice and buses", ["knife", "mouse", "bus"]),
        ("a red fire truck on the truck", ["truck", "truck"]),
        ("the cats' concatenated tables", ["cat", "dining table"]),
        ("nothing here", []),
    ],
)
def test_objects_that_a_caption_mentions(text, objects):
    assert coco_mentions(text) == objects


def test_chair_by_hand():
    result = chair(
        ["A man with a dog and a dog.", "Two cats on a couch.", "It is dark."],
        [{"person"}, {"cat", "couch"}, {"bus"}],
        coco_mentions,
    )
    assert (result.mentions, result.chair_i, result.chair_s) == (5, 2 / 5, 1 / 3)
    assert (result.objects, result.hits, result.named) == (4, 3, 3 / 4)
    assert chair([], [], coco_mentions).chair_i == 0


@needs_java
def test_captions_are_tokenized_as_pycocoevalcap_does():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = ["A Dog's hat, isn't it? (yes)", "two; lines -- here...", "3.5 o'clock"]
    theirs = PTBTokenizer().tokenize({0: [{"caption": text} for text in texts]})[0]
    assert tokenized(texts) == theirs
    assert tokenized(["", "zwei\nZeilen – Café", " "]) == ["", "zwei zeilen café", ""]


@needs_java
def test_cider_by_hand():
    samples = [question_sample("a red bus stops"), question_sample("small cats sleep", "kittens")]
    metric = Cider()
    # No n-gram is shared: every order that both captions have counts fully, of four.
    assert metric.scores(samples, ["a red bus stops", "Small cats sleep."]) == pytest.approx(
        [10, (10 * 3 / 4 + 0) / 2]
    )
    assert metric.scores(samples, ["kittens", ""]) == [0, 0]
    # One of two equally rare words: cosine 1/sqrt(2), and the penalty for being one bigram short.
    short = [question_sample("red bus"), question_sample("small cat")]
    scores = metric.scores(short, ["red", "small cat"])
    assert scores == pytest.approx([10 / 4 / math.sqrt(2) * math.exp(-1 / 72), 5])
    assert metric.scores([], []) == []
    with pytest.raises(InputError, match="score all captions together"):
        metric.score(samples[0], "a bus")
    assert metric.by_itself is False


@needs_java
def test_coco_captions_have_chair_as_well():
    figures = CocoCaptions().figures(
        [question_sample("a red bus", "the road")], ["a bus and a dog"]
    )
    assert figures == {"CHAIRi (captions)": 1 / 2, "CHAIRs (captions)": 1}


def test_captions_are_refused_at_once_where_java_is_missing_or_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no `java` on the PATH; install a Java runtime"):
        Cider()
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no heap' >&2\nexit 1\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(InputError, match=r"failed \(no heap\); install a Java runtime"):
        Cider()


def test_captions_name_the_extra_where_pycocoevalcap_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # a Java that was tried is not tried again
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.delitem(sys.modules, "pycocoevalcap.tokenizer", raising=False)
    with pytest.raises(InputError, match=r'pip install "vlmflow\[data\]"'):
        Cider()
