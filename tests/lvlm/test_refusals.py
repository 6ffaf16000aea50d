"""What a processor, a template, a tokenizer or a model refuses is one sentence, in Python too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError, ModelError, reason
from vlmflow.lvlm.refusals import model_refusals
from vlmflow.truncation.rankings.ranking import Ranking

PICTURE = Image.effect_noise((90, 60), 80).convert("RGB")
TEXT_ONLY = (
    "{% for m in messages %}"
    "{{ m['role'].upper() + ': ' + m['content'].strip() + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PRINTS_ANYTHING = TEXT_ONLY.replace(" + m['content'].strip() + '\n' ", " ~ m['content'] ~ '\n' ")


@pytest.fixture
def vlm():
    return vlmflow.LVLM(*tiny_llava(), name="tiny")


def uses(vlm):
    """Every way in which a model runs on a prompt."""
    prompt = vlm.prepare(PICTURE, "What?", "red")
    bare = vlm.prepare(PICTURE, "What?")
    return {
        "generate": lambda: vlm.generate(PICTURE, "What?", max_new_tokens=1),
        "truncated": lambda: vlm.generate_ids(
            bare, max_new_tokens=1, truncation=vlmflow.Truncation(layer=1, keep=2)
        ),
        "batch": lambda: vlm.generate_batch([bare, bare], max_new_tokens=1),
        "explain": lambda: vlm.explain(PICTURE, "What?", "red"),
        "low_memory": lambda: vlm.explain(PICTURE, "What?", "red", low_memory=True),
        "removal": lambda: vlm.removal_curves([prompt]),
        "shared": lambda: shared(vlm, bare),
    }


def shared(vlm, prompt):
    from vlmflow.truncation.shared_answers import shared_answers

    return shared_answers(vlm, [prompt], [vlmflow.Truncation(layer=1, keep=0)], max_new_tokens=1)


USES = ("generate", "truncated", "batch", "explain", "low_memory", "removal", "shared")


@pytest.mark.parametrize("use", USES)
def test_both_numbers_are_said_where_features_and_tokens_differ(vlm, use):
    run = uses(vlm)[use]
    vlm.model.config.vision_feature_select_strategy = "full"  # one feature more: the class token
    with pytest.raises(ModelError) as caught:
        run()
    sentence = str(caught.value)
    rows = 2 if use == "batch" else 1
    assert f"{17 * rows} image features where its processor puts {16 * rows} image to" in sentence
    assert "patch_size" in sentence
    assert "'full'" in sentence
    assert "do not match" in str(caught.value.__cause__)


@pytest.mark.parametrize("use", USES)
def test_whatever_else_a_model_raises_is_one_sentence_that_names_it(vlm, use):
    run = uses(vlm)[use]
    vlm.model.config.vision_feature_layer = 99
    with pytest.raises(ModelError, match="refuses this prompt: tuple index out of range"):
        run()


def test_a_count_of_all_values_is_read_as_one_of_features():
    """As they are stated: per feature by most models, all values by LLaVA, whatever the width."""
    model, _ = tiny_llava()
    for stated, tokens, features in ((17, 16, 17), (544, 16, 17), (32, 30, 32), (2048, 70, 64)):
        with pytest.raises(ModelError, match=rf" {features} image features .* {tokens} image"):
            raised(model, f"Image features and image tokens do not match, tokens: {tokens}, "
                          f"features: {stated}")  # fmt: skip


def raised(model, message):
    class Refusing(torch.nn.Module):
        def forward(self):
            raise ValueError(message)

    from vlmflow.lvlm.as_found import as_found

    refusing = Refusing()
    refusing.config = model.config
    run_inside(as_found, refusing)


def run_inside(block, module):
    # Called from a module of vlmflow, as every model is.
    namespace = {"__name__": "vlmflow.a_test", "block": block, "module": module}
    exec("def run():\n    with block(module):\n        module()", namespace)
    namespace["run"]()


@dataclass(frozen=True)
class Broken(Ranking):
    """A ranking of a user with a bug in it."""

    name = "broken"
    summary = "raises"

    def scores(self, seen):
        raise TypeError("a bug of mine")


def test_a_bug_of_a_user_is_not_blamed_on_the_model(vlm):
    prompt = vlm.prepare(PICTURE, "What?")
    cut = vlmflow.Truncation(layer=1, keep=2, rank_by=Broken())
    with pytest.raises(TypeError, match="a bug of mine"):
        vlm.generate_ids(prompt, truncation=cut)


def test_memory_that_runs_out_and_our_own_bugs_stay_what_they_are():
    class Full(torch.nn.Module):
        def forward(self):
            raise RuntimeError("CUDA out of memory. Tried to allocate 7 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_inside(model_refusals, Full())
    with pytest.raises(RuntimeError, match="stack expects a non-empty"), model_refusals(Full()):
        torch.stack([])


@pytest.mark.parametrize(
    ("setting", "value", "phrases"),
    [
        ("patch_size", None, ["patch_size=None", "give it the model's own"]),
        ("patch_size", "14", ["'int' and 'str'"]),
        ("num_additional_image_tokens", None, ["num_additional_image_tokens=None"]),
    ],
)
def test_a_processor_that_cannot_count_tokens_is_refused_by_name(vlm, setting, value, phrases):
    setattr(vlm.processor, setting, value)
    with pytest.raises(InputError, match="the processor of tiny refuses this prompt") as caught:
        vlm.prepare(PICTURE, "What?")
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_pixels_that_a_processor_cannot_make_are_one_sentence(vlm):
    vlm.processor.image_processor.rescale_factor = "x"
    with pytest.raises(InputError, match="the processor of tiny refuses this prompt: ufunc"):
        vlm.prepare(PICTURE, "What?")


@pytest.mark.parametrize("template", [TEXT_ONLY, PRINTS_ANYTHING])
def test_a_template_that_wants_texts_gets_them_with_the_placeholder(vlm, template):
    vlm.processor.chat_template = template
    prompt = vlm.prepare([PICTURE, PICTURE], "What?", "red")
    assert prompt.text == "USER: <image>\n<image>\nWhat?\nASSISTANT:"
    assert prompt.lead == " "
    assert len(prompt.layout.image_positions) == 2 * 16
    parts = [{"type": "text", "text": "Left: "}, {"type": "image"}, {"type": "text", "text": "?"}]
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert vlm.prepare(PICTURE, talk).text == (
        "SYSTEM: Be brief.\nUSER: Left: <image>\n?\nASSISTANT:"
    )


def test_a_template_that_takes_parts_is_given_parts(vlm):
    """Also where it would take texts: then both forms are right, and the first is transformers'."""
    vlm.processor.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}text{{ m['content'] }}{% else %}"
        "parts{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    assert vlm.prepare(PICTURE, "What?").text == "parts<image>What?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        # Its own words, not what its first line makes of the form that it does not take.
        ("{{ messages[0]['content'].strip() }}{{ raise_exception('no pictures') }}", "no pictures"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for", "unexpected 'end of template'"),
        ({"rag": "x", "tool": "y"}, "several chat templates .'rag', 'tool'. but none .*'default'"),
    ],
)
def test_what_a_template_refuses_is_one_sentence(vlm, template, message):
    vlm.processor.chat_template = template
    with pytest.raises(InputError, match=message) as caught:
        vlm.prepare(PICTURE, "What?")
    assert "\n" not in str(caught.value)


def test_a_template_for_prompts_alone_is_enough(vlm):
    vlm.processor.chat_template = (
        "{% if not add_generation_prompt %}{{ raise_exception('prompts only') }}{% endif %}"
        + vlm.processor.chat_template
    )
    assert vlm.prepare(PICTURE, "What?").lead == ""


@pytest.mark.parametrize("text", ["half \udcff", "\ud800 first"])
def test_half_of_a_character_is_refused_in_questions_and_answers(vlm, text):
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    for images, question, answer, what in (
        (PICTURE, text, None, "question"),
        (PICTURE, talk, None, "question"),
        (PICTURE, "What?", text, "answer"),
    ):
        with pytest.raises(InputError, match=rf"the {what} holds '\\ud.*UTF-8"):
            vlm.prepare(images, question, answer)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Error for field 'x':\n  TypeError: no\nmore",
            "Error for field 'x': TypeError: no",
        ),
        ("only this\nnot that", "only this"),
        ("\n\n", "ValueError"),
        ("a:\nb:", "a:"),
    ],
)
def test_a_reason_is_the_first_line_that_says_something(text, line):
    assert line in reason(ValueError(text))
    assert "\n" not in reason(ValueError(text))
    assert "more" not in reason(ValueError(text))
    assert "not that" not in reason(ValueError(text))
