"""Answers explained in a batch are those explained one by one, and one sample spoils no other."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.families import FAMILIES, SIZES, picture
from tests.support.tiny import tiny_llava
from tests.support.tiny_video import WITHOUT_EXPERTS as VIDEO_FAMILIES
from tests.support.tiny_video import video
from vlmflow import LVLM, ExplainOptions, cli
from vlmflow.errors import InputError, ModelError
from vlmflow.explanation import together as measuring
from vlmflow.explanation import without_picture
from vlmflow.explanation.answering import Asked, answered_together
from vlmflow.explanation.explain import explain, information_flow
from vlmflow.flow.signals.region_removal import RegionRemoval
from vlmflow.lvlm.model_parts import image_token_ids
from vlmflow.studies.batching import batches as batching
from vlmflow.studies.batching.ahead import prepare
from vlmflow.studies.explanations.explaining import explained_together
from vlmflow.tasks.base import Task, TaskSample

QUESTIONS = ("What colour is the circle?", "Is there a blue square in the picture? yes no", "red")
SIGNALS = ("attention", "saliency", "sensitivity", "flow_map", "llava_cam", "gradient_input")

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def samples_for(family):
    """Three samples of very different length and shape, where the model takes them."""
    sizes = SIZES[:1] * 2 if family.one_shape else SIZES
    shown = [(picture(1, sizes[0]),), (picture(2, sizes[1]),), (picture(3, sizes[0]),)]
    if not family.queries:
        shown[1] = (picture(2, sizes[1]), picture(4, sizes[0]))
    return [
        TaskSample(str(number), pictures, question, ("red",))
        for number, (pictures, question) in enumerate(zip(shown, QUESTIONS, strict=True))
    ]


def share_of(family):
    """What may differ: linear attention runs in chunks, which padding moves, and rounds more."""
    return 1e-4 if family.model_type.startswith("qwen3_5") else 2e-5


def assert_alike(own, alone, share=2e-5):
    """Every number of two results is the same, up to a share of the largest of its array."""
    assert own.answer == alone.answer
    assert own.targets == alone.targets
    assert own.layout.tokens == alone.layout.tokens
    arrays = {name: (own.maps[name], alone.maps[name]) for name in alone.maps}
    for name in ("attention_share", "saliency_mean", "saliency_sum"):
        arrays[name] = (getattr(own, name), getattr(alone, name))
    arrays["target values"] = own.settings["target_values"], alone.settings["target_values"]
    assert (own.picture_effect is None) == (alone.picture_effect is None)
    if alone.picture_effect is not None:
        for name in ("with_picture", "without_picture"):
            arrays[name] = getattr(own.picture_effect, name), getattr(alone.picture_effect, name)
        assert own.picture_effect.likeliest == alone.picture_effect.likeliest
    for name, (values, expected) in arrays.items():
        if expected is None:
            assert values is None
            continue
        atol = share * np.abs(expected).max()
        np.testing.assert_allclose(values, expected, rtol=0, atol=atol, err_msg=name)
    for name, flags in alone.flags.items():
        np.testing.assert_array_equal(own.flags[name], flags)
    np.testing.assert_array_equal(own.text_attention.rows, alone.text_attention.rows)
    # Half precision: where it is rounded the other way, it is 1 in 1024 away.
    np.testing.assert_allclose(
        own.text_attention.values, alone.text_attention.values, rtol=1e-3, atol=1e-6
    )


@each_family
@pytest.mark.parametrize(
    "how", [{}, {"per_token": False, "low_memory": True}], ids=["per token", "whole, low memory"]
)
def test_a_batch_is_explained_as_its_samples_are_alone(family, how):
    vlm, samples = family.lvlm(), samples_for(family)
    options = ExplainOptions(SIGNALS, max_new_tokens=4, **how)
    prepared = [prepare(vlm, sample) for sample in samples]
    assert len({len(item.prompt.layout) for item in prepared}) > 1
    for sample, together in zip(samples, explained_together(vlm, prepared, options), strict=True):
        own = information_flow(vlm, together, options)
        assert own.settings["batch"] == (1 if vlm.family.has_recorded_grids else 3)
        alone = explain(vlm, sample.pictures, sample.question, None, options)
        assert alone.settings["batch"] == 1
        assert_alike(own, alone, share_of(family))


def talking_llava():
    """A model and its processor; random weights would answer with image tokens, too."""
    model, processor = tiny_llava(3, layers=3)
    model.generation_config.suppress_tokens = list(image_token_ids(model))
    return model, processor


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*talking_llava(), name="tiny")


class Lengths(Task):
    """Six questions of six lengths; pictures may be broken."""

    name, metric, max_new_tokens = "lengths", "share", 3

    def __init__(self, broken=()):
        self.broken = broken

    def samples(self, split, count=None):
        for number in [3, 0, 5, 1, 4, 2][:count]:
            shown = self.broken if number in (1,) and self.broken else picture(number, (50, 40))
            yield TaskSample(f"k{number}", (shown,), "What is it? " + "red " * number, ("red",))

    def score(self, sample, answer):
        return 1.0


OPTIONS = ExplainOptions(["saliency"], per_token=False, max_new_tokens=3)


def explain_all(vlm, out, task=None, count=6, **options):
    return vlmflow.explain_task(
        vlm, task or Lengths(), out=out, samples=count, **{"options": OPTIONS, **options}
    )


def flows_of(explained, out):
    return [
        vlmflow.InformationFlow.load(out / answer.folder)
        for answer in explained.answers
        if answer.failure is None
    ]


@pytest.fixture
def forwards(vlm):
    """Rows of every forward pass of the model."""
    rows = []

    def note(_model, _args, kwargs):
        rows.append(len(kwargs["input_ids"]))

    handle = vlm.model.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    handle.remove()


def test_similar_lengths_go_together_and_answers_keep_their_order(vlm, tmp_path, forwards):
    done = []
    explained = explain_all(vlm, tmp_path / "b", batch=2, progress=lambda *now: done.append(now))
    assert set(forwards) == {2}
    assert done == [(number, 6) for number in range(1, 7)]
    assert [answer.sample.key for answer in explained.answers] == [
        "k3", "k0", "k5", "k1", "k4", "k2",
    ]  # fmt: skip
    assert explained.settings["batch"] == explained.settings["largest_batch"] == 2
    assert {answer.batch for answer in explained.answers} == {2}
    singly = explain_all(vlm, tmp_path / "a", batch=1)
    assert singly.settings["largest_batch"] == 1
    pairs = zip(flows_of(explained, tmp_path / "b"), flows_of(singly, tmp_path / "a"), strict=True)
    for own, alone in pairs:
        assert_alike(own, alone)


def test_what_was_explained_in_another_batch_is_not_explained_again(vlm, tmp_path, forwards):
    explain_all(vlm, tmp_path, batch=1, count=2)
    # A folder of the time when results did not say it.
    earlier = tmp_path / "0001-k0"
    flow = vlmflow.InformationFlow.load(earlier)
    settings = {name: value for name, value in flow.settings.items() if name != "batch"}
    replace(flow, settings=settings).save(earlier)
    before = (earlier / "flow.json").stat().st_mtime_ns
    forwards.clear()
    explained = explain_all(vlm, tmp_path, batch=4)
    assert (earlier / "flow.json").stat().st_mtime_ns == before
    assert set(forwards) == {4}
    assert [answer.batch for answer in explained.answers] == [1, 1, 4, 4, 4, 4]
    assert explained.settings["largest_batch"] == 4
    forwards.clear()
    again = explain_all(vlm, tmp_path, batch="auto")
    assert forwards == []
    assert again.answers == explained.answers


def test_an_automatic_batch_takes_all_that_memory_holds(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "free_memory", lambda device: 10**12)
    explained = explain_all(vlm, tmp_path)  # the default
    assert explained.settings["batch"] == "auto"
    assert explained.settings["largest_batch"] == 6


def test_a_broken_picture_in_the_middle_is_named_alone(vlm, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    explained = explain_all(vlm, tmp_path / "out", Lengths(path), batch=6)
    failed = [answer for answer in explained.answers if answer.failure is not None]
    assert [answer.sample.key for answer in failed] == ["k1"]
    assert "broken.png" in failed[0].failure
    assert {answer.batch for answer in explained.answers if answer.failure is None} == {5}


def test_an_answer_that_ends_at_once_fails_alone(vlm, tmp_path, monkeypatch):
    plain = LVLM.generate_batch

    def silent(own, prompts, **options):
        answers = plain(own, prompts, **options)
        longest = max(range(len(prompts)), key=lambda place: len(prompts[place].layout))
        return [() if place == longest else ids for place, ids in enumerate(answers)]

    monkeypatch.setattr(LVLM, "generate_batch", silent)
    explained = explain_all(vlm, tmp_path, batch=6)
    (failed,) = explained.failures
    assert failed.sample.key == "k5"
    assert "ends its answer before the first token" in failed.failure
    assert [answer.batch for answer in explained.answers if answer.failure is None] == [5] * 5


def test_prompts_with_less_room_are_answered_apart(tmp_path):
    """Answers of one and of three tokens, each of them explained, in one batch."""
    model, processor = talking_llava()
    vlm = LVLM(model, processor)
    longest = max(
        len(vlm.prepare(sample.pictures, sample.question).layout)
        for sample in Lengths().samples("test")
    )
    model.generation_config.eos_token_id = None  # every answer takes what it may
    model.config.get_text_config().max_position_embeddings = longest + 1
    options = replace(OPTIONS, per_token=True)
    explained = explain_all(vlm, tmp_path, batch=6, options=options)
    flows = flows_of(explained, tmp_path)
    rooms = [
        vlm.room_for_answer(vlm.prepare(sample.pictures, sample.question), 3)
        for sample in Lengths().samples("test")
    ]
    assert min(rooms) == 1 < max(rooms) == 3
    assert [len(flow.answer_tokens) for flow in flows] == rooms
    for sample, own in zip(Lengths().samples("test"), flows, strict=True):
        assert_alike(own, explain(vlm, sample.pictures, sample.question, None, options))


def test_answers_of_different_length_are_measured_apart_token_by_token(monkeypatch):
    """Rows of short answers would run as often as the longest one has tokens."""
    vlm = LVLM(*talking_llava())
    questions = [
        Asked(vlm.prepare(picture(number, (50, 40)), "What is it?"), "What is it?", [5] * length)
        for number, length in enumerate([1, 10, 2, 9, 8, 1])
    ]
    rows = []
    whole = measuring.measure

    def counted(model, layers, inputs, *given, **options):
        rows.append(len(inputs["input_ids"]))
        return whole(model, layers, inputs, *given, **options)

    monkeypatch.setattr(measuring, "measure", counted)
    for per_token, wanted in [(True, [3, 1, 2]), (False, [6])]:
        options = replace(OPTIONS, per_token=per_token)
        rows.clear()
        measured = measuring.measured_together(
            vlm, answered_together(vlm, questions, options), options
        )
        assert rows == wanted
        lengths = [len(own.answered.prompt.answer_ids) for own in measured]
        assert lengths == [1, 10, 2, 9, 8, 1]
        assert [own.batch for own in measured] == ([2, 3, 1, 3, 3, 2] if per_token else [6] * 6)


def test_a_model_that_returns_mappings_answers():
    model, processor = talking_llava()
    vlm = LVLM(model, processor)
    prompt = vlm.prepare(picture(1, (50, 40)), "What is it?")
    plain = vlm.generate_batch([prompt], max_new_tokens=3)
    model.generation_config.return_dict_in_generate = True
    assert vlm.generate_batch([prompt], max_new_tokens=3) == plain


def test_a_batch_without_memory_is_halved(vlm, tmp_path, forwards):
    def without_memory(_model, _args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = vlm.model.register_forward_pre_hook(without_memory, with_kwargs=True)
    try:
        explained = explain_all(vlm, tmp_path, batch=5)
    finally:
        handle.remove()
    assert not explained.failures
    # Five, and then half of them: two, and three in two parts. The sixth had a batch of its own.
    assert [rows for rows, _ in itertools.groupby(forwards)] == [5, 2, 3, 1, 2, 1]
    assert explained.settings["batch"] == 5
    assert explained.settings["largest_batch"] == 2


def test_signals_with_passes_of_their_own_run_beside_a_batch(vlm, tmp_path):
    signals = [
        *("llava_cam_smooth(copies=2)", "integrated_gradients(steps=2)", "rollout", "relevancy"),
        *("tam", "combined", RegionRemoval(regions=4, forwards=24)),
    ]
    options = ExplainOptions(signals, max_new_tokens=3)
    explained = explain_all(vlm, tmp_path, batch=3, count=3, options=options)
    assert explained.settings["largest_batch"] == 3
    samples = Lengths().samples("test", 3)
    for sample, own in zip(samples, flows_of(explained, tmp_path), strict=True):
        alone = explain(vlm, sample.pictures, sample.question, None, options)
        assert set(own.signals) == set(alone.signals) == {*options.named}
        assert_alike(own, alone)


def test_what_a_model_does_not_take_together_is_explained_alone(tmp_path):
    """transformers stacks Perception LM's tiles of one shape only."""
    (family,) = [family for family in FAMILIES if family.one_shape]
    vlm = family.lvlm()

    class Shapes(Lengths):
        def samples(self, split, count=None):
            for number, size in enumerate(SIZES):
                yield TaskSample(str(number), (picture(number, size),), "What?", ("red",))

    explained = explain_all(vlm, tmp_path, Shapes(), batch=2, count=2)
    assert not explained.failures
    assert explained.settings["largest_batch"] == 1


@pytest.mark.parametrize("family", VIDEO_FAMILIES, ids=lambda family: family.name)
def test_videos_and_pictures_are_explained_as_they_are_alone(family, tmp_path):
    """Together where transformers takes them so, else one by one."""
    vlm = family.lvlm()

    class Clips(Lengths):
        def samples(self, split, count=None):
            shown = (video(), picture(1, SIZES[1]), video(5, size=SIZES[1], seed=4))
            for number, (visual, question) in enumerate(zip(shown, QUESTIONS, strict=True)):
                yield TaskSample(str(number), (visual,), question, ("red",))

    explained = explain_all(vlm, tmp_path, Clips(), batch=3, count=3)
    assert not explained.failures
    apart = family.model_type in ("glm4v", "llava_onevision")
    assert explained.settings["largest_batch"] == (1 if apart else 3)
    for sample, own in zip(Clips().samples("test"), flows_of(explained, tmp_path), strict=True):
        alone = explain(vlm, sample.pictures, sample.question, None, OPTIONS)
        assert own.layout.frames == alone.layout.frames
        assert_alike(own, alone, share_of(family))


def test_a_layout_that_a_run_says_is_that_of_its_own_sample():
    (family,) = [family for family in FAMILIES if family.model_type == "blip-2"]
    vlm, samples = family.lvlm(), samples_for(family)
    options = ExplainOptions(["attention"], max_new_tokens=2, gradients=False)
    prepared = [prepare(vlm, sample) for sample in samples]
    looks = []
    for sample, together in zip(samples, explained_together(vlm, prepared, options), strict=True):
        (grid,) = information_flow(vlm, together, options).layout.grids
        (expected,) = explain(vlm, sample.pictures, sample.question, None, options).layout.grids
        np.testing.assert_allclose(grid.looks, expected.looks, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(grid.positions, expected.positions)
        looks.append(grid.looks)
    assert np.abs(looks[0] - looks[1]).max() > 1e-4  # another picture's would be seen


def test_a_picture_effect_that_needs_prompts_alone_gets_them(vlm, monkeypatch):
    """Flash attention over sliding windows takes no padding where tokens are missing."""
    plain = without_picture.logits_at

    def padded(model, inputs, positions):
        if len(inputs["input_ids"]) > 1:
            raise ModelError("layer 0 slides a window")
        return plain(model, inputs, positions)

    monkeypatch.setattr(without_picture, "logits_at", padded)
    prepared = [prepare(vlm, sample) for sample in Lengths().samples("test", 3)]
    for item, together in zip(prepared, explained_together(vlm, prepared, OPTIONS), strict=True):
        own = information_flow(vlm, together, OPTIONS)
        sample = item.sample
        assert_alike(own, explain(vlm, sample.pictures, sample.question, None, OPTIONS))
        assert own.picture_effect is not None


@pytest.mark.parametrize("batch", [0, -1, 1.5, None, "many"])
def test_a_batch_that_makes_no_sense_is_refused(vlm, tmp_path, batch):
    with pytest.raises(InputError, match="batch="):
        explain_all(vlm, tmp_path / "out", batch=batch)
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path):
    for part in talking_llava():
        part.save_pretrained(tmp_path / "model")
    lines = []
    for number in range(3):
        Image.new("RGB", (40, 40), (90 * number, 20, 80)).save(tmp_path / f"{number}.png")
        question = "What is it? " + "red " * number
        line = {"image": f"{number}.png", "question": question, "answer": "red"}
        lines.append({**line, "split": "test"})
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, lines)))
    short = ("--signals", "saliency", "--whole", "--max-new-tokens", "3", "--json")

    def run(*arguments):
        command = ["explain", *map(str, arguments), "--model", str(tmp_path / "model"), *short]
        return CliRunner().invoke(cli.app, command)

    for batch, largest in {"2": 2, "auto": 3}.items():
        result = run(questions, "--batch", batch, "--out", tmp_path / batch)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["largest_batch"] == largest
        assert (
            f'<td>largest_batch</td><td class="text">{largest}</td>'
            in (tmp_path / batch / "index.html").read_text()
        )
    for arguments, phrase in {
        (questions, "--batch", "0"): "'0' is neither auto nor a number from 1 on",
        (questions, "--batch", "x"): "'x' is neither auto nor a number from 1 on",
        (tmp_path / "0.png", "What?", "--batch", "2"): "--batch is for a task; 'What?' is one",
        (tmp_path / "0.png", "What?", "--batch", "auto"): "--batch is for a task; 'What?' is one",
    }.items():
        refused = run(*arguments, "--out", tmp_path / "none")
        assert refused.exit_code == 2, refused.output
        assert phrase in " ".join(refused.stderr.split())
        assert not (tmp_path / "none").exists()
