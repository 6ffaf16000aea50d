"""A study computes everything once, survives whatever happens to it, and chooses fairly."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.families import FAMILIES
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, Ranking, Truncation
from vlmflow.errors import InputError
from vlmflow.lvlm.resolution import with_image_settings
from vlmflow.studies.batching.ahead import prepare
from vlmflow.studies.samples import StoredSample, model_identity
from vlmflow.studies.store import Store, writing
from vlmflow.studies.truncations import answering, dry_run, in_batches
from vlmflow.studies.truncations.answering import WorkItem, answer_samples
from vlmflow.studies.truncations.arms import arms_of, mean_share
from vlmflow.studies.truncations.down_sample import down_sampled, grows
from vlmflow.studies.truncations.plan import Plan, read_plan
from vlmflow.studies.truncations.results import read_study
from vlmflow.studies.truncations.run import run_study
from vlmflow.studies.truncations.store import STUDY, StoredResult
from vlmflow.tasks.folder import FolderTask
from vlmflow.tasks.registry import as_task
from vlmflow.truncation.amounts import amount
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.top_left import TopLeft
from vlmflow.truncation.shared_answers import shared_answers


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*tiny_llava(7, layers=4), name="tiny")


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path)


def write_questions(folder, count=8):
    lines = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (50, 60 + number, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        split = "calibration" if number < count // 2 else "test"
        line = {"image": f"{number}.png", "question": f"What is {number}?", "answer": "red"}
        lines.append({**line, "split": split})
    path = folder / "noise.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def plan_of(questions, **options):
    given = {
        "truncations": ("layer=1,keep=0", {"name": "half", "layer": 2, "keep": 0.5}),
        "samples": 4,
        "calibration": 4,
        "timed": 1,
        "max_new_tokens": 4,
    }
    return Plan(task=str(questions), **{**given, **options})


def table_of(directory):
    return read_study(directory).result_frame()


# --- what is to be done ---


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"task": "x", "sampels": 3}, "no option 'sampels'"),
        ({"model": "x"}, "needs a task"),
        ({"task": "x"}, "there is none"),
        ({"task": "x", "truncations": ["layer=1,keep=0"], "samples": 0}, "samples=0"),
        ({"task": "x", "truncations": ["layer=1,keep=0"], "samples": True}, "samples=True"),
        ({"task": "x", "truncations": ["layer=1,keep=0"], "max_loss": "2 %"}, "max_loss='2 %'"),
        ({"task": "x", "truncations": ["layer=1,keep=0"], "max_new_tokens": 0}, "max_new_tokens"),
        ({"task": "x", "truncations": ["layer=1,keep=0"], "batch": "all"}, "batch='all'"),
        ({"task": "x", "truncations": ["layer=1,keep=0"], "batch": 0}, "batch=0"),
        ({"task": 3, "truncations": ["layer=1,keep=0"]}, "task=3"),
        ({"task": "x", "truncations": "layer=1,keep=0"}, "is not a list"),
        ({"task": "x", "truncations": [3]}, "truncation 3"),
        ({"task": "x", "truncations": ["layer=1"]}, "needs keep"),
        ({"task": "x", "truncations": [{"layer": 1, "keep": 0, "kepe": 1}]}, "'kepe'"),
        ({"task": "x", "truncations": [{"preset": "fastw"}]}, "unknown preset 'fastw'"),
        ({"task": "x", "truncations": [{"preset": "fastv", "layer": 2}]}, "'layer'"),
        ({"task": "x", "truncations": [{"name": 3, "layer": 2, "keep": 0}]}, "name 3"),
        ({"task": "x", "sweep": {"layer": [1]}}, "keep values"),
        ({"task": "x", "sweep": {"layer": [1], "keep": 0}}, "takes a list"),
        ({"task": "x", "sweep": {"layer": [1], "keep": [0], "seed": [1]}}, "no 'seed'"),
        ({"task": "x", "sweep": [1]}, "not a mapping"),
        (
            {"task": "x", "truncations": [{"name": "a", "layer": n, "keep": 0} for n in (1, 2)]},
            "two truncations are called 'a'",
        ),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(plain, message):
    with pytest.raises(InputError, match=message):
        Plan.from_mapping(plain)


def test_a_ranking_that_would_not_be_read_back_is_refused_before_anything_runs():
    code = """
from dataclasses import dataclass
import vlmflow

@dataclass(frozen=True)
class Ambiguous(vlmflow.Ranking):
    def scores(self, seen):
        return seen.image.float()
"""
    cells = {name: {"__name__": name} for name in ("a_cell", "another_notebook")}
    exec(code, cells["a_cell"])
    stale = Truncation(2, 4, cells["a_cell"]["Ambiguous"]())
    Plan(task="x", truncations=(stale,))
    exec(code, cells["a_cell"])  # the cell is run again
    with pytest.raises(InputError, match="'ambiguous' has been defined again since; make it anew"):
        Plan(task="x", truncations=(stale,))
    fresh = Truncation(2, 4, cells["a_cell"]["Ambiguous"]())
    Plan(task="x", truncations=(fresh,))
    exec(code, cells["another_notebook"])
    with pytest.raises(InputError, match="give yours another name in its class"):
        Plan(task="x", truncations=(fresh,))


@pytest.mark.parametrize(
    ("text", "message"),
    [("task: [", "not YAML in line"), ("- a", "not a list of"), ("3: x", "not a list of")],
)
def test_a_file_that_is_not_a_plan_is_refused(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(tmp_path / "missing.yaml")


def test_what_looks_like_a_date_is_text(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "task: scenes-reading\nrevision: 2024-01-31\n"
        "truncations: [{layer: 1, keep: 0, name: 2024-13-77}, {layer: 2, keep: 0, name: 5:30}]"
    )
    plain = read_plan(path)
    assert plain["revision"] == "2024-01-31"
    assert plain["truncations"][0]["name"] == "2024-13-77"
    assert Plan.from_mapping(plain | {"truncations": plain["truncations"][:1]}).to_json()


@pytest.mark.parametrize(
    "value", ["!!int x", "!!timestamp x", "9" * 5000, "[" * 5000, "!!python/object:os.system x"]
)
def test_whatever_yaml_cannot_read_is_one_sentence(tmp_path, value):
    path = tmp_path / "study.yaml"
    path.write_text(f"task: {value}")
    with pytest.raises(InputError, match=r"study.yaml' is not YAML") as caught:
        read_plan(path)
    assert "\n" not in str(caught.value)


def test_a_plan_survives_json_and_sweeps_every_combination():
    plan = Plan.from_mapping(
        {
            "task": "x",
            "truncations": [{"preset": "fastv"}],
            "sweep": {"layer": [1, 3], "keep": [0, 0.5], "rank_by": ["random", "uniform"]},
        }
    )
    arms = plan.arms(8)
    assert Plan.from_mapping(json.loads(json.dumps(plan.to_json()))).arms(8) == arms
    policies = [arm.truncation for arm in arms if arm.kind == "truncation"]
    assert policies[0] == Truncation(1, 0.5)  # layer 2 of 32, and no earlier than 1
    assert len(policies) == 1 + 2 * 2 + 2  # keep 0 takes no ranking
    with pytest.raises(InputError, match="layer=3"):
        plan.arms(3)


def test_checking_a_plan_compares_no_truncation_with_every_other(monkeypatch):
    sweep = {
        "layer": [1, 2, 3],
        "keep": list(range(1, 41)),
        "rank_by": ["random", "uniform", "random"],
    }
    compared = 0
    equal = Truncation.__eq__

    def counted(self, other):
        nonlocal compared
        compared += 1
        return equal(self, other)

    monkeypatch.setattr(Truncation, "__eq__", counted)
    arms = Plan(task="x", sweep=sweep).arms(4)
    assert sum(arm.kind == "truncation" for arm in arms) == 3 * 40 * 2  # duplicates once
    assert compared < 10 * 3 * 40 * 3  # 360 settings; each with every other: 64,620


def test_every_truncation_gets_its_controls_and_shared_ones_appear_once():
    policies = [Truncation(2, 0), Truncation(2, 0.5), Truncation(2, 0.5, "uniform")]
    arms = arms_of([("", policy) for policy in policies], 4, seed=3)
    kinds = [arm.kind for arm in arms]
    assert kinds[:2] == ["untouched", "no image"]
    assert arms[1].truncation == Truncation(0, 0)
    (control,) = [arm for arm in arms if arm.kind == "random"]
    assert control.truncation == Truncation(2, 0.5, Random(3))
    # Keeping half from layer 2 of 4 on leaves 3/4 to an average layer, whatever ranks.
    smaller = [arm for arm in arms if arm.kind == "down-sampled"]
    assert [mean_share(arm.truncation, 4, 16) for arm in smaller] == [0.5, 0.75]
    assert len({arm.name for arm in arms}) == len(arms)


# --- the control that shrinks pictures ---


def smaller(vlm, picture, share):
    whole = vlm.prepare([picture], "What?")
    assert not grows(vlm, whole, "What?")  # LLaVA makes every picture into the same grid
    return down_sampled(vlm, whole, "What?", share, growing=False)


def test_a_shrunken_picture_lies_where_its_tokens_are(vlm):
    """Pixels outside the corner must be even ground, and those inside the whole picture."""
    picture = Image.new("RGB", (80, 80), "red")
    picture.paste((0, 0, 255), (40, 0, 80, 80))  # the right half
    prompt, policy = smaller(vlm, picture, 0.25)
    assert policy == Truncation(0, 4, "top_left")  # 2 x 2 of 4 x 4
    seen = np.asarray(prompt.images[0]).astype(int)
    assert (abs(seen[5, 5] - [255, 0, 0]) < 9).all()
    assert (abs(seen[5, 35] - [0, 0, 255]) < 9).all()
    assert (seen[60, 60] == seen[10, 70]).all()
    assert (abs(seen[60, 60] - [128, 0, 128]) < 3).all()


@pytest.mark.parametrize(("share", "kept"), [(0.05, 1), (0.3, 4), (0.6, 9), (0.95, 16)])
def test_the_corner_has_about_as_many_tokens_as_wanted(vlm, share, kept):
    _, policy = smaller(vlm, Image.new("RGB", (90, 60)), share)
    assert policy.keep == amount(kept)


def test_a_picture_of_one_tile_is_shrunk_for_smolvlm():
    (family,) = [family for family in FAMILIES if family.name == "smolvlm"]
    vlm = with_image_settings(family.lvlm(), {"do_image_splitting": False})
    prompt, policy = smaller(vlm, Image.new("RGB", (24, 24), "red"), 0.25)
    assert len(prompt.layout.grids) == 1
    assert policy == Truncation(0, prompt.layout.image_positions.size // 4, TopLeft())
    assert vlm.generate_ids(prompt, max_new_tokens=2, truncation=policy)


def growing_model():
    """A model whose image tokens grow with the picture, and whose FLOPs nobody can compute."""
    (family,) = [family for family in FAMILIES if family.name == "qwen2_vl"]
    return family.lvlm()


def test_a_model_of_any_shape_gets_a_smaller_picture():
    vlm = growing_model()
    whole = vlm.prepare([Image.effect_noise((168, 140), 90).convert("RGB")], "What?")
    assert grows(vlm, whole, "What?")
    prompt, rest = down_sampled(vlm, whole, "What?", 0.5, growing=True)
    assert whole.layout.image_positions.size == 12  # its processor takes no more
    assert prompt.layout.image_positions.size == 6
    assert rest is None
    assert prompt.images[0].width > 20  # 10 pixels would do, and show less
    ratios = [item.images[0].width / item.images[0].height for item in (whole, prompt)]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.1)


def test_costs_that_cannot_be_computed_are_told_by_the_formula(questions, tmp_path):
    for path in questions.parent.glob("*.png"):
        Image.effect_noise((168, 140), 90).convert("RGB").save(path)
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=growing_model())
    lines = read_study(tmp_path / "out").summaries
    assert {line.flops_share for line in lines} == {None}
    costs = {line.arm.kind: line.cost_share for line in lines if line.arm.of != "half"}
    assert costs["untouched"] == 1
    assert 0 < costs["no image"] < costs["truncation"] < 1
    assert costs["no image"] < costs["down-sampled"] < 1


# --- running ---


@dataclass(frozen=True)
class NeverRanks(Ranking):
    """Fails on every prompt."""

    def scores(self, seen):
        raise InputError("nothing to rank by")


def test_an_arm_that_fails_leaves_the_others_their_answers(vlm, questions, monkeypatch):
    """It is found by halves, so that few others are answered apart from the rest."""
    plans = [Truncation(1, keep, NeverRanks() if keep == 5 else "uniform") for keep in range(1, 9)]
    items = [
        WorkItem(arm, arm.name)
        for arm in arms_of([("", plan) for plan in plans], 4, controls=(), seed=0)
    ]
    (sample,) = as_task(str(questions)).samples("test", 1)
    calls = []
    whole = answering.shared_answers
    monkeypatch.setattr(
        answering, "shared_answers", lambda *given, **more: calls.append(1) or whole(*given, **more)
    )
    (results,) = answer_samples(vlm, [prepare(vlm, sample)], [items], 4)
    assert [result.id for result in results] == [item.id for item in items]
    assert len(calls) < len(items)
    for item, result in zip(items, results, strict=True):
        if item.arm.truncation is not None and item.arm.truncation.ranking == NeverRanks():
            assert result.failure == "InputError: nothing to rank by"
        else:
            alone = vlm.generate(
                sample.pictures, sample.question, max_new_tokens=4, truncation=item.arm.truncation
            )
            assert result.answer == alone


@pytest.mark.parametrize(
    ("batch", "done"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6, 8]), ("auto", [8])]
)
def test_answers_are_those_of_the_model_one_by_one(vlm, questions, tmp_path, batch, done):
    plan = plan_of(questions, batch=batch)
    steps = []
    run_study(plan, tmp_path / "out", vlm=vlm, progress=steps.append)
    study = read_study(tmp_path / "out")
    assert [step.done for step in steps] == done
    assert study.about["largest_batch"] == done[0]
    assert steps[-1].total == 8
    for split in ("calibration", "test"):
        for stored, sample in zip(study.samples[split], study.task.samples(split, 4), strict=True):
            for arm in study.arms:
                if arm.is_down_sampled:
                    continue
                said = vlm.generate(
                    sample.pictures,
                    sample.question,
                    max_new_tokens=4,
                    truncation=arm.truncation,
                )
                assert study.answers[stored.id, arm.name].answer == said
    assert all(line.prefill and line.prefill_share for line in study.summaries)
    untouched = study.summaries[0]
    assert untouched.arm.kind == "untouched"
    assert untouched.flops_share == untouched.agreement.value == 1
    assert study.arm_frame()["n"].eq(4).all()


def test_nothing_is_computed_twice(vlm, questions, tmp_path, monkeypatch):
    plan = plan_of(questions, timed=0)
    run_study(plan, tmp_path / "out", vlm=vlm)
    first = table_of(tmp_path / "out")

    def refuse(*_args, **_options):
        raise AssertionError("computed again")

    monkeypatch.setattr(in_batches, "answer_samples", refuse)
    steps = []
    run_study(plan, tmp_path / "out", vlm=vlm, progress=steps.append)
    assert steps[-1].done == 8
    pd.testing.assert_frame_equal(first, table_of(tmp_path / "out"))


def test_a_further_truncation_computes_only_itself(vlm, questions, tmp_path, monkeypatch):
    plan = plan_of(questions, timed=0)
    run_study(plan, tmp_path / "out", vlm=vlm)
    names = []

    def noting(model, batch, items, length):
        names.extend(item.arm.name for own in items for item in own)
        return answer_samples(model, batch, items, length)

    monkeypatch.setattr(in_batches, "answer_samples", noting)
    more = replace(plan, truncations=(*plan.truncations, "layer=3,keep=0"))
    run_study(more, tmp_path / "out", vlm=vlm)
    assert set(names) == {"layer 3, keep 0"}  # its down-sampled control is half's


def test_whatever_changes_results_changes_their_hash(vlm, questions, tmp_path):
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=vlm)
    other = LVLM(*tiny_llava(8, layers=4), name="tiny")
    assert model_identity(other) != model_identity(vlm)
    assert model_identity(LVLM(*tiny_llava(7, layers=4), name="other")) == model_identity(vlm)
    run_study(plan_of(questions, timed=0), tmp_path / "both", vlm=vlm)
    run_study(plan_of(questions, timed=0), tmp_path / "both", vlm=other)
    assert not table_of(tmp_path / "both").equals(table_of(tmp_path / "out"))
    run_study(plan_of(questions, timed=0), tmp_path / "both", vlm=vlm)
    pd.testing.assert_frame_equal(table_of(tmp_path / "both"), table_of(tmp_path / "out"))
    # Another picture under the same name is another sample.
    before = {sample.id for sample in read_study(tmp_path / "out").samples["test"]}
    Image.new("RGB", (50, 50), "red").save(questions.parent / "7.png")
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=vlm)
    assert len(before & {sample.id for sample in read_study(tmp_path / "out").samples["test"]}) == 3


def test_failed_samples_are_told_and_left_out(vlm, questions, tmp_path):
    (questions.parent / "5.png").write_bytes(b"no picture")
    plan = plan_of(questions, truncations=("layer=1,keep=0", "layer=2,keep=40"), timed=1)
    run_study(plan, tmp_path / "out", vlm=vlm)
    study = read_study(tmp_path / "out")
    broken = [
        failure for failure in study.failures if failure.split == "test" and len(failure.arms) > 4
    ]
    assert [failure.key for failure in broken] == ["6"]
    assert "5.png" in broken[0].reason
    # More tokens than there are: that arm fails everywhere, and no other one.
    lines = {line.arm.name: line for line in study.summaries if line.split == "test"}
    assert "layer 2, keep 40 by last_attention" not in lines
    assert lines["layer 1, keep 0"].count == 3
    assert lines["layer 1, keep 0"].failed == 1
    frame = study.result_frame()
    reasons = frame[frame["arm"] == "layer 2, keep 40 by last_attention"]["failure"]
    assert reasons.str.contains("keep").sum() == 7
    assert frame[frame["failure"].notna()]["score"].isna().all()


def test_what_failed_is_tried_again_and_nothing_else(vlm, questions, tmp_path, monkeypatch):
    def failing(model, batch, items, length):
        results = answer_samples(model, batch, items, length)
        return [
            [replace(result, answer=None, failure="no memory") for result in own]
            if prepared.sample.key == "6"
            else own
            for prepared, own in zip(batch, results, strict=True)
        ]

    monkeypatch.setattr(in_batches, "answer_samples", failing)
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=vlm)
    assert [failure.reason for failure in read_study(tmp_path / "out").failures] == ["no memory"]
    monkeypatch.setattr(in_batches, "answer_samples", answer_samples)
    steps = []
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=vlm, progress=steps.append)
    assert (steps[-1].done, steps[-1].new) == (8, 1)
    run_study(plan_of(questions, timed=0), tmp_path / "whole", vlm=vlm)
    pd.testing.assert_frame_equal(table_of(tmp_path / "out"), table_of(tmp_path / "whole"))


def test_samples_that_lack_other_arms_are_answered_apart(vlm, questions, tmp_path, monkeypatch):
    """As when a study with more truncations takes over one that was ended in between."""
    out = tmp_path / "out"
    few = plan_of(questions, timed=0, truncations=("layer=1,keep=0",), controls=())
    run_study(replace(few, calibration=1, samples=2), out, vlm=vlm)
    batches = []

    def noting(model, batch, items, length):
        batches.append((len(batch), sorted({len(own) for own in items})))
        return answer_samples(model, batch, items, length)

    monkeypatch.setattr(in_batches, "answer_samples", noting)
    more = replace(few, truncations=("layer=1,keep=0", "layer=2,keep=3"))
    run_study(more, out, vlm=vlm)
    assert batches[0][0] == 1  # to see how much memory one takes
    assert sorted(batches[1:]) == [(3, [1]), (5, [4])]
    run_study(replace(more, batch=1), tmp_path / "singly", vlm=vlm)
    pd.testing.assert_frame_equal(table_of(out), table_of(tmp_path / "singly"))


def test_a_batch_without_memory_is_halved(vlm, questions, tmp_path, monkeypatch):
    sizes = []

    def small(model, prompts, policies, **more):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return shared_answers(model, prompts, policies, **more)

    monkeypatch.setattr(answering, "shared_answers", small)
    plan = plan_of(questions, timed=0, batch=4)
    run_study(plan, tmp_path / "out", vlm=vlm)
    # Both batches were put together before; down-sampled pictures are answered alone.
    assert [size for size in sizes if size > 1] == [4, 2, 2, 4, 2, 2]
    assert read_study(tmp_path / "out").about["largest_batch"] == 2
    monkeypatch.undo()
    run_study(replace(plan, batch=1), tmp_path / "singly", vlm=vlm)
    pd.testing.assert_frame_equal(table_of(tmp_path / "out"), table_of(tmp_path / "singly"))


def test_another_group_of_a_sample_is_taken_over(vlm, questions, tmp_path):
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=vlm)
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    questions.write_text("\n".join(json.dumps({**line, "group": "noise"}) for line in lines))
    steps = []
    run_study(plan_of(questions, timed=0), tmp_path / "out", vlm=vlm, progress=steps.append)
    assert steps[-1].new == 0
    assert set(table_of(tmp_path / "out")["group"]) == {"noise"}


def test_a_study_of_a_file_as_an_object_is_found_again(vlm, questions, tmp_path):
    vlmflow.study(
        vlm, FolderTask(questions), ["layer=1,keep=0"], out=tmp_path / "out", samples=1,
        calibration=1, timed=0, max_new_tokens=2,
    )  # fmt: skip
    assert read_study(tmp_path / "out").task.path == questions


def test_a_split_without_samples_is_told(vlm, questions, tmp_path):
    class Halved(FolderTask):
        def samples(self, split, count=None):
            return iter(()) if split == "test" else super().samples(split, count)

    task, plan = Halved(questions), plan_of(questions, timed=0)
    for run_it in (
        lambda: run_study(plan, tmp_path / "study", vlm=vlm, task=task),
        lambda: vlmflow.cliff_study(vlm, task, samples=2, calibration=2),
    ):
        with pytest.raises(InputError, match="the test split of noise has no samples"):
            run_it()


def test_a_model_that_gives_nan_is_told(questions, tmp_path):
    import torch

    model, processor = tiny_llava(9)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"no sample .* could be answered.*not finite"):
        run_study(plan_of(questions), tmp_path / "out", vlm=LVLM(model, processor))


def test_an_unfinished_study_has_no_report(tmp_path):
    with writing(tmp_path, STUDY) as store:
        store.write("study", None)
    with pytest.raises(InputError, match="not finished"):
        read_study(tmp_path)
    with pytest.raises(InputError, match="holds no study"):
        read_study(tmp_path / "elsewhere")


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    code = (
        "import sys, time, pathlib; from vlmflow.studies.store import writing\n"
        "from vlmflow.studies.truncations.store import STUDY\n"
        f"with writing(pathlib.Path({str(tmp_path)!r}), STUDY):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another process"), writing(tmp_path, STUDY):
            pass
        other.kill()
    with writing(tmp_path, STUDY) as store:
        store.write("study", None)


def test_a_directory_that_cannot_hold_a_study_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot hold a study"), writing(tmp_path / "file", STUDY):
        pass
    (tmp_path / STUDY.file).write_text("no database, but long enough to look like one " * 100)
    with pytest.raises(InputError, match="nothing in it can be read; remove the file"):
        Store(tmp_path, STUDY)


def test_a_study_of_another_format_is_refused_and_left_alone(tmp_path):
    base = sqlite3.connect(tmp_path / STUDY.file)
    base.execute("CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL)")  # format 0
    base.execute("INSERT INTO study VALUES ('study', 'null')")
    base.commit()
    base.close()
    before = (tmp_path / STUDY.file).read_bytes()
    for refused in (lambda: Store(tmp_path, STUDY), lambda: writing(tmp_path, STUDY).__enter__()):
        with pytest.raises(InputError, match=r"has format 0, but .* format 3; run it again in"):
            refused()
    base = sqlite3.connect(tmp_path / STUDY.file)
    assert [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type='table'")] \
        == ["study"]  # fmt: skip
    base.close()
    assert len(before) == (tmp_path / STUDY.file).stat().st_size


def test_a_commit_is_there_after_a_kill(tmp_path):
    code = (
        "import os, pathlib, signal\n"
        "from vlmflow.studies.samples import StoredSample\n"
        "from vlmflow.studies.store import writing\n"
        "from vlmflow.studies.truncations.store import STUDY, StoredResult\n"
        f"with writing(pathlib.Path({str(tmp_path)!r}), STUDY) as store:\n"
        "    store.add(StoredSample('s', 'test', 'k', 'q', '[]', '[]', '', ''),"
        " StoredResult('r', 'red'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    store = Store(tmp_path, STUDY)
    assert store.get(StoredResult, ["r", "x"]) == {"r": StoredResult("r", "red")}
    sample = StoredSample("s", "test", "k", "q", "[]", "[]", "", "")
    assert store.get(StoredSample, ["s"])["s"] == sample
    store.close()


RUN = """
import sys
from pathlib import Path
from tests.studies.test_study import plan_of
from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.studies.truncations.run import run_study
run_study(
    plan_of(sys.argv[1], timed=0, batch=1), Path(sys.argv[2]), vlm=LVLM(*tiny_llava(7, layers=4)),
    progress=lambda now: print(now.done, flush=True),
)
"""


def test_a_killed_study_goes_on_and_ends_with_the_same_table(vlm, questions, tmp_path):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    command = [sys.executable, "-c", RUN, str(questions), str(tmp_path / "killed")]
    for stop in (2, 5):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=environment, text=True, cwd=root
        ) as process:
            while int(process.stdout.readline()) < stop:
                pass
            time.sleep(random.Random(stop).random() * 0.05)  # anywhere within the next sample
            process.kill()
    base = sqlite3.connect(tmp_path / "killed" / STUDY.file)
    (count,) = base.execute("SELECT count(*) FROM sample").fetchone()
    base.close()
    assert 5 <= count < 8
    run_study(plan_of(questions, timed=0), tmp_path / "killed", vlm=vlm)
    run_study(plan_of(questions, timed=0), tmp_path / "whole", vlm=vlm)
    pd.testing.assert_frame_equal(table_of(tmp_path / "killed"), table_of(tmp_path / "whole"))


def test_a_plan_answers_the_first_samples_and_keeps_them(vlm, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "PROBED", 3)
    plan = Plan(
        task=str(questions), truncations=("layer=1,keep=0",), samples=4, calibration=4, timed=0,
        controls=(), batch=1,
    )  # fmt: skip
    out = tmp_path / "study"
    first = dry_run.estimate_study(plan, out, vlm=vlm)
    assert (first.samples, first.stored, first.probed, first.arms) == (8, 0, 3, 3)
    assert first.seconds > 0
    assert "8 samples x 3 arms = 24, of which 9 are there" in first.lines()[0]
    assert first.weights == sum(p.nbytes for p in vlm.model.parameters())
    with pytest.raises(InputError, match="not finished"):
        read_study(out)
    second = dry_run.estimate_study(plan, out, vlm=vlm)
    assert (second.stored, second.probed) == (3, 3)
    last = dry_run.estimate_study(plan, out, vlm=vlm)
    assert (last.stored, last.probed, last.seconds) == (6, 2, None)
    run_study(plan, tmp_path / "whole", vlm=vlm)
    assert read_study(out).arm_frame().equals(read_study(tmp_path / "whole").arm_frame())


def test_a_plan_answers_the_first_samples_in_batches_too(vlm, tmp_path, monkeypatch):
    """Not the shortest of those that are prepared together."""
    monkeypatch.setattr(dry_run, "PROBED", 4)
    questions = write_questions(tmp_path)
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["question"] = "What is it? " * (9 - number)
    questions.write_text("\n".join(map(json.dumps, lines)))
    plan = plan_of(questions, timed=0, controls=(), batch=3)
    estimate = dry_run.estimate_study(plan, tmp_path / "study", vlm=vlm)
    assert (estimate.samples, estimate.stored, estimate.probed) == (8, 0, 4)
    batches = []

    def noting(model, batch, items, length):
        batches.append([prepared.sample.key for prepared in batch])
        return answer_samples(model, batch, items, length)

    monkeypatch.setattr(in_batches, "answer_samples", noting)
    run_study(plan, tmp_path / "study", vlm=vlm)
    assert sorted(key for batch in batches for key in batch) == ["5", "6", "7", "8"]
