"""Words of the answer and of the prompt as what is explained, against the whole prompt, uncut.

The reference marks the words in the layout of a prompt of which nothing is cut off, runs eager
attention over it, and writes the loss on the words' own positions by hand.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import vlmflow
from tests.support.families import FAMILIES, picture
from tests.support.reference import measure_slowly
from tests.support.slow_signals import (
    answer_logits,
    integrated,
    relevancy,
    rollout,
    search,
    tam,
    targets_and_gradients,
    text_attention,
)
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.region_removal import RegionRemoval
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.words import words_as_answer
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.verdict import verdict

QUESTION, ANSWER = "What colour is the circle, left or red?", "it is a red circle"
# float32, both sides: 1e-4 of the layer's largest value is some hundred roundings (6e-8 each).
FLOAT32 = 1e-4
CHOSEN = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl_moe", "gemma3", "idefics3")
"""Families: grouped heads in all, tiles, positions on three axes, late image features, sliding
windows beside blocks of a picture that see both ways, text between tiles."""
SEARCH = RegionRemoval(regions=3, forwards=9)
SIGNALS = (
    "attention", "saliency", "flow_map", "llava_cam", "rollout", "relevancy", "gradient_input",
    "integrated_gradients(steps=2)", "tam(window=1)", "text_attention", SEARCH,
)  # fmt: skip


def uncut(prompt, words):
    """The whole prompt with these tokens, found one by one from its end, as its answer."""
    tokens = [token.strip() for token in prompt.layout.tokens]
    first = max(
        place for place in range(len(tokens)) if tokens[place : place + len(words)] == list(words)
    )
    stop = first + len(words)
    segments = prompt.layout.segments.copy()
    segments[segments == Segment.ANSWER] = Segment.USER
    segments[first:stop] = Segment.ANSWER
    segments[stop:] = Segment.PAD  # nothing later is read for it, so nothing of it is counted
    return replace(prompt, layout=replace(prompt.layout, segments=segments))


def close(values, expected, what):
    assert values.shape == expected.shape, what
    largest = np.maximum(np.abs(expected).max(-1, keepdims=True), 1e-30)
    worst = (np.abs(values - expected) / largest).max()
    assert worst <= FLOAT32, f"{what}: off by {worst:.1e}"


def assert_agrees(flow, eager, prompt, norm):
    """Every array of the result, for the words together and token by token."""
    layers, given = eager.decoder_layers, prompt.inputs
    truth = measure_slowly(eager.model, layers, given, prompt.layout, "logprob", norm)
    tokens = len(prompt.layout.answer_positions)
    assert len(flow.targets) == 1 + tokens
    _, gradients, difference = targets_and_gradients(eager, prompt, 1.0, "zero")
    at_once = {
        "gradient_input": (difference * gradients).sum(-1).numpy(),
        "integrated_gradients": integrated(eager, prompt, 2, "mean"),
        "tam": tam(eager, prompt, 1),
    }
    for name, expected in at_once.items():
        close(flow.maps[name][0], expected, name)
    shares = [truth.share(token) for token in range(tokens)]
    looks = [truth.attention_map(token) for token in range(tokens)]
    for target in range(1 + tokens):
        at = f", target {target}"
        own = slice(None) if target == 0 else slice(target - 1, target)
        close(flow.attention_share[:, target], np.mean(shares[own], 0), f"share{at}")
        close(flow.maps["attention"][:, target], np.mean(looks[own], 0), f"attention{at}")
        close(flow.maps["saliency"][:, target], truth.saliency_map(target), f"saliency{at}")
        close(flow.maps["flow_map"][0, target], truth.saliency_map(target).sum(0), f"flow{at}")
        close(flow.maps["rollout"][:, target], rollout(truth, target), f"rollout{at}")
        close(flow.maps["text_attention"][:, target], text_attention(truth, target), f"text{at}")
        close(flow.maps["relevancy"][:, target], relevancy(truth, target), f"relevancy{at}")
        for values, expected in zip(
            (flow.saliency_mean, flow.saliency_sum), truth.segment_saliency(target), strict=True
        ):
            close(values[:, target], expected, f"S{at}")
        # Its terms cancel, so it is their size that the rounding goes with.
        cam, terms = truth.llava_cam(target), truth.llava_cam_terms(target)
        off = np.abs(flow.maps["llava_cam"][:, target] - cam).max(1) / np.maximum(terms, 1e-30)
        assert off.max() <= FLOAT32, f"CAM{at}: off by {off.max():.1e}"


@pytest.mark.parametrize("name", CHOSEN)
def test_words_of_the_question_agree_with_eager_attention(name):
    """Two pictures, a run of tokens in the middle of the question, every signal."""
    (family, *_) = [family for family in FAMILIES if family.model_type == name]
    vlm, eager = family.lvlm(), family.lvlm("eager")
    shown = [picture(1, (30, 20)), picture(2, (17, 41))]
    flow = vlm.explain(shown, QUESTION, target="the circle", of="question", signals=SIGNALS)
    prompt = uncut(eager.prepare(shown, QUESTION), [t.strip() for t in flow.answer_tokens])
    assert flow.answer == "the circle"
    assert prompt.layout.answer_positions[-1] < len(prompt.layout) - 5
    assert_agrees(flow, eager, prompt, family.norm)
    expected, *_ = search(eager, prompt, SEARCH)
    close(flow.maps["region_removal"][0, 1:], expected[1:], "region removal")
    everything = np.ones(len(prompt.layout.image_positions), bool)
    blind = answer_logits(eager, prompt, everything).softmax(-1)
    ids = prompt.inputs["input_ids"][0, prompt.layout.answer_positions]
    np.testing.assert_allclose(
        flow.picture_effect.without_picture, blind[range(len(ids)), ids], rtol=1e-3
    )


@pytest.fixture(scope="module")
def tiny():
    """A model with a sliding window, and its eager twin."""
    build = {"kv_heads": 2, "text_model": "mistral", "text_config": {"sliding_window": 9}}
    eager = vlmflow.LVLM(*tiny_llava(**build, attn_implementation="eager"))
    return vlmflow.LVLM(*tiny_llava(**build)), eager


@pytest.fixture(scope="module")
def shown():
    return picture(1, (80, 60))


def test_words_of_the_answer_agree_with_eager_attention(tiny, shown):
    vlm, eager = tiny
    flow = vlm.explain(shown, QUESTION, ANSWER, target="a red", signals=SIGNALS)
    whole = eager.prepare(shown, QUESTION, ANSWER)
    prompt = uncut(whole, [token.strip() for token in flow.answer_tokens])
    assert_agrees(flow, eager, prompt, "post_attention_layernorm")
    ids = whole.answer_ids
    again = vlm.explain(shown, QUESTION, ids, target="a red", signals=["saliency"])
    close(again.maps["saliency"], flow.maps["saliency"], "given as ids")


def test_the_sum_over_tokens_is_what_the_words_together_are(tiny, shown):
    """Without a pass per token, and for the other scalars, from a plain forward."""
    vlm, eager = tiny
    flow = vlm.explain(shown, QUESTION, of="question", target="circle, left", signals=SIGNALS)
    alone = vlm.explain(
        shown, QUESTION, of="question", target="circle, left", signals=SIGNALS, per_token=False
    )
    assert alone.targets == ("circle, left",)
    for name, maps in flow.maps.items():
        close(alone.maps[name][:, 0], maps[:, 0], name)
    prompt = uncut(eager.prepare(shown, QUESTION), [t.strip() for t in flow.answer_tokens])
    with torch.no_grad():
        logits = eager.model(**prompt.inputs).logits[0]
    at = prompt.layout.answer_positions
    ids = prompt.inputs["input_ids"][0, at]
    for scalar, scores in {"logprob": logits.log_softmax(-1), "logit": logits}.items():
        own = vlm.explain(
            shown, QUESTION, of="question", target="circle, left", scalar=scalar, signals=["tam"]
        )
        expected = scores[at - 1, ids]
        np.testing.assert_allclose(own.settings["target_values"], expected, rtol=1e-4, atol=1e-5)


def test_a_padded_batch_is_its_rows(tiny, shown):
    """Words of a question beside words of an answer and a whole answer, of different lengths."""
    vlm, _ = tiny
    other = picture(2, (60, 80))
    options = ExplainOptions(["attention", "saliency", "relevancy", "gradient_input"])
    question = vlm.prepare([shown, other], QUESTION)
    first = [token.strip() for token in question.layout.tokens].index("colour")
    ids = question.inputs["input_ids"][0].tolist()
    spoken = vlm.prepare(shown, QUESTION, ANSWER).answer_ids
    asked = vlm.prepare(shown, QUESTION)
    prompts = [
        words_as_answer(vlm, question, first, ids[first : first + 3]),
        words_as_answer(vlm, asked, len(asked.layout) + 2, spoken[2:4], spoken[:2]),
        vlm.prepare(other, QUESTION, ANSWER),
    ]
    inputs, layouts = collate(prompts, pad_id(vlm.processor.tokenizer))
    together = measure(vlm.model, vlm.decoder_layers, inputs, layouts, options)
    for prompt, measured in zip(prompts, together, strict=True):
        layers, own = vlm.decoder_layers, [prompt.layout]
        alone = measure(vlm.model, layers, prompt.inputs, own, options)[0]
        np.testing.assert_allclose(measured.target_values, alone.target_values, rtol=1e-4)
        for name, maps in alone.maps.items():
            close(measured.maps[name], maps, name)


def test_the_whole_question_is_all_of_it(tiny, shown):
    vlm, _ = tiny
    flow = vlm.explain(shown, QUESTION, of="question", signals=["attention"], gradients=False)
    assert flow.answer == QUESTION
    assert flow.words.is_whole
    assert flow.subject == "the question"
    tokens = len(flow.answer_tokens)
    same = vlm.explain(
        shown, QUESTION, of="question", target=range(1, tokens + 1), signals=["attention"],
        gradients=False,
    )  # fmt: skip
    assert same.subject == "the question"
    np.testing.assert_array_equal(same.maps["attention"], flow.maps["attention"])
    third = vlm.explain(
        shown, QUESTION, of="question", target=3, signals=["attention"], gradients=False
    )
    np.testing.assert_allclose(
        third.maps["attention"][:, 0], flow.maps["attention"][:, 3], rtol=1e-4
    )
    answer = vlm.explain(shown, QUESTION, ANSWER, target=ANSWER, gradients=False)
    assert answer.words is None


def test_a_prompt_that_reads_both_ways_is_cut_off_before_the_words(shown):
    """Its model was trained to continue a prefix: the words are predicted, never read, there."""
    (family,) = [family for family in FAMILIES if family.model_type == "paligemma"]
    vlm, eager = family.lvlm(), family.lvlm("eager")
    flow = vlm.explain(shown, QUESTION, of="question", target="circle", signals=["tam(window=1)"])
    whole = eager.prepare(shown, QUESTION)
    at = uncut(whole, [token.strip() for token in flow.answer_tokens]).layout.answer_positions
    ids = whole.inputs["input_ids"][:, : at[-1] + 1]
    kinds = torch.zeros_like(ids)
    kinds[:, at[0] :] = 1
    with torch.no_grad():
        logits = eager.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=kinds,
            pixel_values=whole.inputs["pixel_values"],
        ).logits[0]  # fmt: skip
    expected = logits.log_softmax(-1)[at - 1, ids[0, at]]
    np.testing.assert_allclose(flow.settings["target_values"], expected, rtol=1e-4)


def test_words_are_found_by_what_they_read(tiny, shown):
    vlm, _ = tiny

    def explained(question, **options):
        flow = vlm.explain(shown, question, signals=["attention"], gradients=False, **options)
        before = flow.layout.tokens[: flow.layout.answer_positions[0]]
        return flow.answer, "".join(before).rpartition("\n")[2].strip()

    question = "Is the red circle left of the circle?"
    assert explained(question, of="question", target="red circle") == ("red circle", "Is the")
    with pytest.raises(InputError, match=r"'circle' stands in the question 2 times: ") as caught:
        explained(question, of="question", target="circle")
    # The choices are numbers that name them.
    choices = re.findall(r"(\d+|range\(\d+, \d+\)) in '", str(caught.value))
    for choice, start in zip(choices, ("Is the red", "left of the"), strict=True):
        text, before = explained(question, of="question", target=eval(choice))
        assert text == "circle"
        assert before.endswith(start)
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a circle?"}]},
        {"role": "assistant", "content": "yes, red"},
        {"role": "user", "content": question},
    ]
    assert explained(conversation, of="prompt", target="yes, red")[0] == "yes, red"
    assert explained(conversation, of="question", target="red circle")[0] == "red circle"


def test_special_tokens_are_no_words(tiny, shown):
    """One in the middle of given ids, and those that a template writes."""
    vlm, _ = tiny
    end = vlm.processor.tokenizer.eos_token_id
    for target in (2, range(1, 3)):
        with pytest.raises(InputError, match="a special token that no one says"):
            vlm.explain(shown, QUESTION, [7, end, 8], target=target)
    flow = vlm.explain(shown, QUESTION, [7, end, 8], target=3, gradients=False)
    assert flow.words.before == (7, end)
    assert flow.settings["answer_ids"] == [8]
    empty = {"type": "text", "text": " "}
    content = [empty, {"type": "image"}, {"type": "text", "text": QUESTION}, empty]
    messages = [{"role": "user", "content": content}]
    flow = vlm.explain(shown, messages, of="question", gradients=False)
    assert flow.answer == QUESTION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "blue"}, "target='blue' is not in the answer, whose tokens are"),
        ({"target": "colour"}, "it stands in the question: of='question'"),
        ({"target": "logit"}, "the scalar that is explained is scalar='logit'"),
        ({"target": " "}, "target=' ' is empty"),
        ({"target": 0}, "target=0 names no words"),
        ({"target": True}, "target=True names no words"),
        ({"target": 99}, "target=99, but the answer has tokens 1 to"),
        ({"target": range(2, 99)}, "target=range(2, 99), but the answer has tokens 1 to"),
        ({"target": range(3, 3)}, "target=range(3, 3) is no run of tokens"),
        ({"target": range(1, 5, 2)}, "target=range(1, 5, 2) is no run of tokens"),
        ({"target": "is", "of": "caption"}, "of='caption' is none of 'answer', 'question'"),
        ({"target": "is", "of": "question"}, "answer='it is a red circle', but of='question'"),
        ({"of": "prompt", "answer": None}, "name some words as target"),
        ({"of": "prompt", "answer": None, "target": "USER"}, "stands before the picture"),
        ({"of": "question", "answer": None, "target": "USER"}, "stands before the picture"),
    ],
)
def test_words_that_cannot_be_explained_are_named(tiny, shown, options, message):
    vlm, _ = tiny
    with pytest.raises(InputError) as caught:
        vlm.explain(shown, QUESTION, **{"answer": ANSWER, **options})
    assert message in str(caught.value)


def test_a_picture_has_to_stand_before_the_words():
    """Between two pictures is before one, and a question may stand before all."""
    (family, *_) = [family for family in FAMILIES if family.model_type == "qwen2_vl"]
    vlm, shown = family.lvlm(), picture(1, (30, 20))
    text, image = {"type": "text", "text": QUESTION}, {"type": "image"}
    inline = (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '"
        + vlm.image_token
        + "' }}{% endif %}{% endfor %}{% endfor %} assistant:"
    )
    vlm.processor.chat_template = inline
    for parts in ([text, image], [image, text, image]):
        messages = [{"role": "user", "content": parts}]
        pictures = [shown] * parts.count(image)
        for target in (None, "circle"):
            with pytest.raises(InputError, match="stands before the picture"):
                vlm.explain(pictures, messages, of="question", target=target)
    messages = [{"role": "user", "content": [image, text]}]
    assert vlm.explain(shown, messages, of="question", target="circle").answer == "circle"


def test_a_question_that_the_picture_is_read_with_gives_its_words_away():
    (family,) = [family for family in FAMILIES if family.model_type == "instructblip"]
    vlm = family.lvlm()
    with pytest.raises(InputError, match="would give its words away; explain words of its answer"):
        vlm.explain(picture(1, (30, 20)), QUESTION, of="question")
    flow = vlm.explain(picture(1, (30, 20)), QUESTION, ANSWER, target="red circle")
    assert flow.subject == "the words “red circle” of the answer"


def test_a_word_that_the_pictures_last_token_predicts_has_no_chance_without_it():
    (family,) = [family for family in FAMILIES if family.model_type == "deepseek_vl"]
    vlm, shown = family.lvlm(), picture(1, (30, 20))
    flow = vlm.explain(shown, QUESTION, of="question", gradients=False)
    assert flow.words.first - 1 == flow.layout.image_positions[-1]
    assert flow.picture_effect is None
    assert "was not measured" in verdict(flow).picture
    later = vlm.explain(shown, QUESTION, of="question", target="circle", gradients=False)
    assert later.picture_effect is not None


def test_pages_say_what_was_explained(tiny, shown, tmp_path):
    vlm, _ = tiny
    flow = vlm.explain(shown, QUESTION, of="question", target="circle")
    name = "the word “circle” of the question"
    assert flow.subject == name
    assert name in verdict(flow).headline
    assert name in verdict(flow).picture
    assert f"explained: {name}" in flow._repr_html_()
    page = vlmflow.report(flow, tmp_path / "report.html").read_text("utf-8")
    assert f"What {name} draws on" in page
    assert "the answer draws" not in page
    assert f"for {name}: insertion" in str(vlm.trust(flow, "flow_map", steps=2))
    again = InformationFlow.load(flow.save(tmp_path))
    assert again.words == flow.words
    assert again.targets == flow.targets
    np.testing.assert_array_equal(flow.map("flow_map", target="circle"), flow.map("flow_map"))
    with pytest.raises(InputError, match="the targets of this result are 'circle'"):
        flow.map("flow_map", target="answer")
    answer = vlm.explain(shown, QUESTION, ANSWER)
    with pytest.raises(InputError, match=r"vlm\.explain\(\.\.\., target='red circle'\)"):
        answer.map("flow_map", target="red circle")


def test_hostile_words_are_shown_as_text(tiny, shown, tmp_path):
    vlm, _ = tiny
    hostile = "<script>alert(1)</script>\u202e"
    flow = vlm.explain(
        shown, f"Is it {hostile} here?", of="question", target=hostile, gradients=False
    )
    assert flow.answer == hostile
    assert "⟦U+202E⟧" in flow.subject
    page = vlmflow.report(flow, tmp_path / "report.html").read_text("utf-8")
    for html in (page, flow._repr_html_()):
        assert "<script>alert" not in html
        assert "\u202e" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;⟦U+202E⟧" in html


@pytest.mark.parametrize("options", [{"of": "question"}, {}], ids=["question", "answer"])
def test_trust_scores_the_words_themselves(tiny, shown, options):
    """The end of the insertion curve is the mean probability of the words, from a plain pass."""
    vlm, eager = tiny
    answer = None if options else ANSWER
    flow = vlm.explain(shown, QUESTION, answer, target=" circle", **options)
    prompt = uncut(
        eager.prepare(shown, QUESTION, answer), [token.strip() for token in flow.answer_tokens]
    )
    with torch.no_grad():
        chances = eager.model(**prompt.inputs).logits[0].softmax(-1)
    at = prompt.layout.answer_positions
    expected = chances[at - 1, prompt.inputs["input_ids"][0, at]].mean()
    curves = vlm.trust(flow, "flow_map", steps=2).curves
    np.testing.assert_allclose(curves.insertion[-1], expected, rtol=1e-4)
    np.testing.assert_allclose(curves.deletion[0], expected, rtol=1e-4)
