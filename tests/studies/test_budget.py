"""How many image tokens a task needs: tested in order, reported beside truncation, stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.families import FAMILIES
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, BudgetSettings
from vlmflow.cli import app
from vlmflow.errors import InputError
from vlmflow.studies.budget.equal_cost import equal_keep
from vlmflow.studies.budget.result import TokenBudget
from vlmflow.studies.budget.run import read_budget
from vlmflow.studies.budget.sentences import compared_words, headline, second_line
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.truncation.flops import DecoderShape, layer_flops

HOSTILE = "<script>alert(1)</script>\u202e"
SETTINGS = BudgetSettings(risk=0.6, calibration=12, samples=6, layer=1, timed=1)


class Drawn(Task):
    """A question about each picture; the answer's length is its score."""

    name, metric, max_new_tokens = f"drawn {HOSTILE}", "length", 3
    broken = 0  # How many pictures cannot be read

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        check_split(split)
        for place in range(count or 0):
            pixels = np.random.default_rng([place, len(split)]).integers(0, 256, (12, 12, 3))
            image = Image.fromarray(pixels.astype(np.uint8)).resize((40, 44))
            yield TaskSample(
                key=f"{split} {place}",
                pictures=(f"missing {place}.png" if place < self.broken else image,),
                question=f"What is {place}? {HOSTILE}",
                references=("x",),
            )

    def score(self, sample: TaskSample, answer: str) -> float:
        return min(1.0, len(answer) / 40)


class Together(Drawn):
    """A metric over all answers."""

    by_itself = False

    def scores(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> list[float]:
        return [len(set(answers)) / 100] * len(answers)


@pytest.fixture(scope="module")
def vlm() -> LVLM:
    family = next(family for family in FAMILIES if family.model_type == "qwen2_5_vl")
    return LVLM(*family.build("sdpa"), name=HOSTILE)


@pytest.fixture(scope="module")
def result(vlm: LVLM, tmp_path_factory) -> TokenBudget:
    folder = tmp_path_factory.mktemp("budget")
    own = vlmflow.budget(vlm, Drawn(), out=folder, settings=SETTINGS)
    assert own.to_json() == read_budget(folder).to_json()
    return own


def by_hand(vlm: LVLM, size: dict[str, int], split: str, count: int) -> list[tuple[int, ...]]:
    """Answer with the image processor's own argument, by plain generate."""
    answers = []
    for sample in Drawn().samples(split, count):
        processor = vlm.processor
        text = vlm.prepare(sample.pictures, sample.question).text
        inputs = processor(
            text=[text], images=[list(sample.pictures)], return_tensors="pt",
            images_kwargs={"size": size},
        )  # fmt: skip
        inputs["pixel_values"] = inputs["pixel_values"].to(vlm.dtype)
        length = inputs["input_ids"].shape[1]
        output = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=3)
        ids = output[0, length:].tolist()
        ends = vlm.model.generation_config.eos_token_id
        while ids and ids[-1] in ([ends] if isinstance(ends, int) else ends or []):
            ids.pop()
        answers.append(tuple(ids))
    return answers


def test_changed_answers_are_those_of_the_processors_own_argument(vlm: LVLM, result: TokenBudget):
    untouched = by_hand(vlm, dict(vlm.processor.image_processor.size), "test", 6)
    for row in result.rows:
        smaller = by_hand(vlm, row.settings["size"], "test", 6)
        assert row.way.changed == sum(a != b for a, b in zip(untouched, smaller, strict=True))
    assert [row.tokens for row in result.rows] == [6, 3, 1]
    assert result.untouched.tokens == 12


def test_the_first_budget_that_fails_ends_the_test(result: TokenBudget):
    first, *rest = result.rows
    assert first.p_value is not None
    assert first.p_value > 0.1
    assert not first.accepted
    assert all(row.p_value is None and not row.accepted for row in rest)
    assert result.smallest is None
    promise = "at most 60 % of answers change, 90 % confidence"
    assert f"no smaller budget is safe ({promise})" in headline(result)
    assert f"changed {first.changed} of the 12; 4 are allowed" in second_line(result)
    assert "1 paired test" in compared_words(result)


def test_a_budget_that_bounds_nothing_is_promised_and_said_to_be_what_to_set(vlm, tmp_path):
    own = dict(vlm.processor.image_processor.size)
    promised = vlmflow.budget(
        vlm, Drawn(), [{"size": own}, {"size": {**own, "longest_edge": 256}}],
        out=tmp_path, settings=SETTINGS,
    )  # fmt: skip
    assert [row.accepted for row in promised.rows] == [True, False]
    assert promised.smallest is promised.rows[0]
    assert promised.rows[0].way.changed == 0
    assert promised.rows[0].p_value == pytest.approx(0.4**12)
    assert json.dumps({"size": own}).replace('"', "&#34;") in (tmp_path / "budget.html").read_text()


def test_equal_cost_is_the_most_that_the_smaller_picture_pays_for(vlm: LVLM):
    shape = DecoderShape.of(vlm.model, vlm.decoder_layers)

    def cost(counts: list[int]) -> int:
        return sum(layer_flops(shape, 20 + tokens) for tokens in counts)

    for image, budget, layer in ((100, 60, 1), (100, 30, 0), (100, 99, 3), (64, 40, 2)):
        kept = equal_keep(shape, 20, image, 20 + budget, layer)
        whole, most = [image] * layer, cost([budget] * shape.layers)
        rest = shape.layers - layer
        assert kept is not None
        assert 0 <= kept <= image
        assert cost([*whole, *[kept] * rest]) <= most < cost([*whole, *[kept + 1] * rest])
    assert equal_keep(shape, 20, 100, 25, 3) is None
    assert equal_keep(shape, 20, 100, 120, 2) == 100


def test_words_between_tiles_count_where_they_are():
    family = next(family for family in FAMILIES if family.model_type == "smolvlm")
    vlm = LVLM(*family.build("sdpa"))
    settings = replace(SETTINGS, layer=0, rank_by="uniform", samples=2, timed=0)
    own = vlmflow.budget(vlm, Drawn(), [20], settings=settings)
    # Fewer image tokens than the smaller picture has: of the whole one more words are left.
    assert own.rows[0].truncated is not None
    assert own.rows[0].truncated.tokens < own.rows[0].way.tokens


def test_an_interrupted_study_answers_nothing_twice(vlm: LVLM, tmp_path, monkeypatch):
    answered = []
    plain = LVLM.generate_ids

    def counted(self, *args, **kwargs):
        answered.append(1)
        if len(answered) == 20:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    settings = BudgetSettings(risk=0.6, calibration=12, samples=6, layer=1, timed=0)
    monkeypatch.setattr(LVLM, "generate_ids", counted)
    with pytest.raises(KeyboardInterrupt):
        vlmflow.budget(vlm, Drawn(), out=tmp_path, settings=settings)
    with pytest.raises(InputError, match="not finished"):
        read_budget(tmp_path)
    first = vlmflow.budget(vlm, Drawn(), out=tmp_path, settings=settings)
    # 12 calibration samples untouched and at the budget that fails; 6 new ones untouched, at three
    # budgets and truncated at the cost of one; and the one that was interrupted.
    assert len(answered) == 12 * 2 + 6 * 5 + 1
    assert vlmflow.budget(vlm, Drawn(), out=tmp_path, settings=settings) == first
    assert len(answered) == 12 * 2 + 6 * 5 + 1


def test_samples_that_fail_are_named_and_hostile_names_escaped(vlm: LVLM, tmp_path):
    task = Drawn()
    task.broken = 2
    own = vlmflow.budget(vlm, task, [6], out=tmp_path, settings=SETTINGS)
    assert (own.tested, own.measured, len(own.failures)) == (10, 4, 4)
    page = (tmp_path / "budget.html").read_text()
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "missing 0.png" in page
    assert own._repr_html_().count("<script") == 0


def test_a_metric_over_all_answers_has_no_loss_and_no_difference(vlm: LVLM):
    with pytest.raises(InputError, match=r"loss=0.1 is about single answers"):
        vlmflow.budget(vlm, Together(), settings=BudgetSettings(loss=0.1, calibration=45, layer=1))
    own = vlmflow.budget(vlm, Together(), [6], settings=SETTINGS)
    assert own.rows[0].difference is None
    assert own.rows[0].way.gain is None


def test_what_cannot_be_is_refused_in_one_sentence(vlm: LVLM):
    fixed = LVLM(*tiny_llava())
    with pytest.raises(InputError, match="no settings of its image processor are known"):
        vlmflow.budget(fixed, Drawn(), settings=SETTINGS)
    with pytest.raises(InputError, match="cannot show a picture in 4 image tokens"):
        vlmflow.budget(fixed, Drawn(), [4], settings=SETTINGS)
    with pytest.raises(InputError, match=r"layer=9, but .* has 4 decoder layers"):
        vlmflow.budget(vlm, Drawn(), settings=BudgetSettings(layer=9, risk=0.6, calibration=12))
    with pytest.raises(InputError, match="even without one changed answer it takes 45"):
        BudgetSettings(calibration=20)
    with pytest.raises(InputError, match="budgets=256 is not a list"):
        BudgetSettings(budgets=256)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="budget=0"):
        BudgetSettings(budgets=(0,))


def test_the_command_line_says_what_a_fixed_model_lacks(tmp_path):
    arguments = ["budget", "scenes-reading", "--out", str(tmp_path / "b"), "--calibration", "45"]
    run = CliRunner().invoke(app, [*arguments, "--samples", "1"])
    assert run.exit_code == 2, run.output
    assert "no settings of its image processor" in " ".join(run.output.split())
    bad = CliRunner().invoke(app, [*arguments, "--tokens", "many"])
    assert bad.exit_code == 2
    assert "is not a list of integers" in bad.output


def test_a_sample_that_shows_a_video_fails_by_name(vlm: LVLM):
    class Clips(Drawn):
        def samples(self, split, count=None):
            for sample in super().samples(split, count):
                clip = vlmflow.Video([sample.pictures[0]] * 2, seconds=[0.0, 0.5])
                yield replace(sample, pictures=(clip,))

    with pytest.raises(InputError, match="this sample shows a video"):
        vlmflow.budget(vlm, Clips(), [6], settings=SETTINGS)


def test_a_sample_that_cannot_be_answered_at_a_budget_ends_nothing(vlm: LVLM, monkeypatch):
    whole = LVLM.prepare

    def broken(self, images, question, answer=None):
        prompt = whole(self, images, question, answer)
        if prompt.layout.image_positions.size < 12 and "What is 0" in question:
            raise RuntimeError("too small for me")
        return prompt

    monkeypatch.setattr(LVLM, "prepare", broken)
    own = vlmflow.budget(vlm, Drawn(), [6], settings=SETTINGS)
    assert own.measured == 6
    assert any("too small for me" in failure for failure in own.failures)
    assert "could not be answered" in own.rows[0].why_not


def test_a_calibration_that_lost_its_samples_says_so(vlm: LVLM):
    task = Drawn()
    task.broken = 11
    with pytest.raises(InputError, match="the 1 calibration samples that could be answered"):
        vlmflow.budget(vlm, task, [6], settings=replace(SETTINGS, samples=12))


def test_settings_that_cannot_be_stored_or_are_never_read_are_refused(vlm: LVLM):
    for value in (float("nan"), np.int64(256)):
        with pytest.raises(InputError, match=r"holds what a preprocessor_config\.json cannot"):
            BudgetSettings(budgets=({"max_pixels": value},))
    with pytest.raises(InputError, match="has no setting 'max_patchs'"):
        vlmflow.budget(vlm, Drawn(), [{"max_patchs": 4}], settings=SETTINGS)
    family = next(family for family in FAMILIES if family.model_type == "internvl")
    with pytest.raises(InputError, match="gives its image processor crop_to_patches=True"):
        vlmflow.budget(
            LVLM(*family.build("sdpa")), Drawn(), [{"crop_to_patches": False}], settings=SETTINGS
        )
