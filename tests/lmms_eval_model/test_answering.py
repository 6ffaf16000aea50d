"""Requests of lmms-eval are answered as the library answers the same questions one by one."""

from __future__ import annotations

import importlib
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.families import FAMILIES, SIZES
from tests.support.families import picture as family_picture
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, Truncation
from vlmflow.errors import InputError, Note
from vlmflow.lmms_eval_model.answering import Request, answer_requests, batches
from vlmflow.lmms_eval_model.generation import Ends, Generation
from vlmflow.lmms_eval_model.plugin import manifest
from vlmflow.lmms_eval_model.prompts import as_prompt
from vlmflow.lvlm.tokens import answer_text

QUESTIONS = (
    "Is there a blue square in the picture?",
    "What colour is the circle?",
    "Which number is printed on the green triangle, and which one on the large yellow star?",
    "Number?",
    "yes or no?",
)
POLICIES = (None, Truncation(1, 0), Truncation((1, 3), (0.5, 2), "mean_attention"))


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*tiny_llava(), name="tiny")


def user(*parts):
    """A turn as lmms-eval writes it."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def requests_of(documents, settings):
    """One request per document, as ConfigurableMessagesTask of 0.7.3 makes them."""
    return [
        Request(str(document[0]["content"][-1]), lambda doc: doc, settings, number, "t", "test")
        for number, document in enumerate(documents)
    ]


def answers(vlm, documents, settings, policy=None, batch_size=3):
    requests = requests_of(documents, settings)
    return answer_requests(vlm, policy, requests, {"t": {"test": documents}}, batch_size)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_batches_in_any_order_answer_as_generate_does(vlm, policy):
    documents = [user(picture(number), text) for number, text in enumerate(QUESTIONS)]
    documents.append(user(picture(7), picture(8), QUESTIONS[0]))
    documents.append(user("What colour is red?"))  # has no picture: nothing is removed
    given = answers(vlm, documents, {"max_new_tokens": 6, "until": []}, policy)
    expected = [
        vlm.generate(picture(number), text, max_new_tokens=6, truncation=policy)
        for number, text in enumerate(QUESTIONS)
    ]
    pair = [picture(7), picture(8)]
    expected.append(vlm.generate(pair, QUESTIONS[0], max_new_tokens=6, truncation=policy))
    assert [answer.text for answer in given[:-1]] == expected
    prompt = "USER: What colour is red? ASSISTANT:"
    ids = vlm.processor.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        row = vlm.model.generate(**ids, max_new_tokens=6, do_sample=False)[0]
    alone = row[ids["input_ids"].shape[1] :]
    assert given[-1].text == answer_text(vlm.processor.tokenizer, alone)
    assert given[-1].input_tokens == ids["input_ids"].shape[1]


def test_what_a_model_cannot_stack_is_answered_one_by_one():
    """PerceptionLM counts the features of tiles that fill up a batch as a picture's own."""
    (family,) = (family for family in FAMILIES if family.name == "perception_lm")
    tiled, shown = family.lvlm(), [family_picture(seed, size) for seed, size in enumerate(SIZES)]
    documents = [user(shown[0], QUESTIONS[0]), user(shown[1], QUESTIONS[1])]
    given = answers(tiled, documents, {"max_new_tokens": 4}, Truncation(1, 0))
    expected = [
        tiled.generate(one, text, max_new_tokens=4, truncation=Truncation(1, 0))
        for one, text in zip(shown, QUESTIONS, strict=False)
    ]
    assert [answer.text for answer in given] == expected


def test_a_document_that_cannot_be_answered_is_named_among_others(vlm):
    policy = Truncation(1, 99)  # more tokens than one picture has, fewer than several have
    many = user(*(picture(number) for number in range(8)), "Is it?")
    with pytest.raises(InputError, match=r"^t, document 1: .*99"):
        answers(vlm, [many, user(picture(0), "Is it?"), many], {"max_new_tokens": 2}, policy)


def test_requests_of_the_same_settings_go_together_longest_first():
    one, two = {"max_new_tokens": 4}, {"max_new_tokens": 5}
    lengths = [(3, one), (9, two), (5, one), (8, one), (1, two)]
    requests = [
        Request("x" * length, list, settings, number, "t", "test")
        for number, (length, settings) in enumerate(lengths)
    ]
    assert list(batches(requests, 2)) == [[3, 2], [0], [1, 4]]


def test_an_answer_ends_before_the_first_of_its_stop_strings(vlm):
    """The text is that of the whole answer, cut; tokens after the cut are not generated."""
    documents = [user(picture(number), text) for number, text in enumerate(QUESTIONS)]
    whole = answers(vlm, documents, {"max_new_tokens": 24})
    # Inside of the first answer, one that the second has too or not, and one that nobody says.
    until = [whole[0].text[5:7], whole[1].text[8:10], "never said"]
    cut = answers(vlm, documents, {"max_new_tokens": 24, "until": until})
    for number, answer in enumerate(whole):
        expected = answer.text
        for text in until:
            expected = expected.split(text)[0]
        assert cut[number].text == expected.strip()
    assert len(cut[0].text) < len(whole[0].text)
    alone = answers(vlm, documents, {"max_new_tokens": 24, "until": until[0]}, batch_size=1)
    assert alone[0].output_tokens < whole[0].output_tokens


def test_a_stop_string_is_not_looked_for_in_the_prompt(vlm):
    """The prompt ends with "ASSISTANT:", and the answer begins with whatever it begins with."""
    document = [user(picture(0), QUESTIONS[0])]
    whole = answers(vlm, document, {"max_new_tokens": 8})[0]
    across = ":" + whole.text[:1]
    assert answers(vlm, document, {"max_new_tokens": 8, "until": [across]})[0].text == whole.text


def test_a_special_token_among_the_stop_strings_ends_an_answer(vlm):
    tokenizer = vlm.processor.tokenizer
    first, end, rest = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("yes", "<unk>", "no")
    )
    assert Ends(tokenizer, []).cut([*first, *end, *rest]) == "yesno"
    ends = Ends(tokenizer, ["<unk>"])
    assert ends.cut([*first, *end, *rest]) == "yes"
    assert ends.are_in([*first, *end])
    assert not ends.are_in(first)


def test_what_a_task_says_of_its_answers_is_read_or_named():
    assert Generation.read({}).max_new_tokens == 1024
    assert Generation.read({"until": None}).until == ()
    assert Generation.read({"until": ""}).until == ()
    greedy = {"temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False}
    assert Generation.read(greedy).options == {}
    sampled = Generation.read({"temperature": 0.2, "top_p": 0.9, "num_beams": 2})
    assert sampled.options == {
        "num_beams": 2,
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
    }
    with pytest.warns(Note, match="'image_aspect_ratio'"):
        Generation.read({"image_aspect_ratio": "original"})
    for settings in (
        {"until": [3]},
        {"until": 3},
        {"max_new_tokens": 0},
        {"max_new_tokens": "many"},
        {"num_beams": -1},
        {"temperature": "hot"},
        {"temperature": float("nan")},
    ):
        with pytest.raises(InputError, match=next(iter(settings))):
            Generation.read(settings)


def test_pictures_stand_where_the_text_says(vlm):
    first, second = picture(1), picture(2)
    prompt = as_prompt(vlm, user(first, second, "Is <image> as <image> is?"))
    parts = ["Is ", first, " as ", second, " is?"]
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    assert prompt.text == vlm.prepare(None, [{"role": "user", "content": content}]).text
    # Said less often than there are pictures: taken out, and the pictures come first.
    fewer = as_prompt(vlm, user(first, second, "Is it <image>?"))
    assert fewer.text == vlm.prepare([first, second], "Is it ?").text


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "audio", "url": "a.wav"}, "'audio'"),
        ({"type": "video", "url": "film.mp4"}, "take no videos"),
        ({"type": "image", "url": "missing.png"}, "missing.png"),
        ({"type": "text", "text": "say </s>"}, "</s>"),
    ],
)
def test_what_the_model_cannot_be_asked_is_named_with_its_document(vlm, part, named):
    good = user(picture(0), QUESTIONS[0])
    bad = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    with pytest.raises(InputError, match=f"^t, document 1: .*{named}") as refusal:
        answers(vlm, [good, bad], {"max_new_tokens": 2})
    assert "\n" not in str(refusal.value)


@pytest.fixture
def plugin(monkeypatch):
    """The class that lmms-eval runs, on a stand-in of lmms-eval; `make lmms-eval` has the real."""

    class Base:
        def __init__(self):
            self.task_dict = {}

        def clean(self):
            pass

    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.api.instance": {"GenerationResult": tuple_of, "TokenCounts": tuple_of},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": lambda name, **paths: (name, paths)},
    }
    for name, attributes in names.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "vlmflow.lmms_eval_model.model", raising=False)
    name, paths = manifest()
    assert name == "vlmflow"
    module, _, cls = paths["chat_class_path"].rpartition(".")
    yield getattr(importlib.import_module(module), cls)
    sys.modules.pop("vlmflow.lmms_eval_model.model", None)


def tuple_of(*values):
    return values


def test_the_model_that_lmms_eval_runs(plugin, vlm, monkeypatch, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    given = {"pretrained": str(tmp_path), "layer": 1, "keep": 0, "batch_size": "2"}
    model = plugin(**given, device="cpu")
    assert plugin.is_simple is False
    documents = [user(picture(number), text) for number, text in enumerate(QUESTIONS)]
    model.task_dict = {"t": {"test": documents}}
    requests = [
        types.SimpleNamespace(args=tuple(request), request_type="loglikelihood")
        for request in requests_of(documents, {"max_new_tokens": 4})
    ]
    expected = [
        vlm.generate(picture(number), text, max_new_tokens=4, truncation=Truncation(1, 0))
        for number, text in enumerate(QUESTIONS)
    ]
    assert [text for text, _ in model.generate_until(requests)] == expected
    for refusing in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(InputError, match=r"no loglikelihood requests.*generate_until"):
            refusing(requests)
    model.clean()
    assert not hasattr(model, "vlm")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="in 2 processes"):
        plugin(**given)
