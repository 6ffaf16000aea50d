"""A task defined in a test file, as in a notebook cell, goes through everything."""

from __future__ import annotations

import dataclasses
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import vlmflow
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.studies.truncations.results import read_study
from vlmflow.tasks.registry import GROUP, as_task, find_task, known_tasks


class Brightness(vlmflow.Task):
    """Is the picture bright? The right answer is the first letter the model could give."""

    name = "brightness"
    metric = "share of a"
    max_new_tokens = 3

    def samples(self, split, count=None):
        first = 0 if split == "calibration" else 1000
        for index in range(count if count is not None else 50):
            noise = np.random.default_rng(first + index).integers(0, 256, (24, 24, 3), np.uint8)
            yield vlmflow.TaskSample(
                f"{split}-{index}", (Image.fromarray(noise),), "Bright?", ("a",)
            )

    def score(self, sample, answer):
        return answer.count(sample.references[0]) / max(len(answer), 1)


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.LVLM(*tiny_llava(3, layers=3), name="tiny")


def test_a_study_of_it_equals_answers_and_scores_one_by_one(vlm, tmp_path):
    truncation = vlmflow.Truncation(1, 4, "random(seed=2)")
    result = vlmflow.study(
        vlm, Brightness(), ["vtw", truncation], out=tmp_path, samples=4, calibration=3, timed=0
    )
    assert {"vtw"} <= {arm.name for arm in result.arms}
    frame = pd.read_csv(tmp_path / "results.csv")
    task = Brightness()
    for policy in (None, truncation):
        name = next(arm.name for arm in result.arms if arm.truncation == policy)
        rows = frame[(frame["arm"] == name) & (frame["split"] == "test")].set_index("key")
        for sample in task.samples("test", 4):
            answer = vlm.generate(
                sample.pictures, sample.question, max_new_tokens=3, truncation=policy
            )
            stored = rows.loc[sample.key]
            assert (stored["answer"] if isinstance(stored["answer"], str) else "") == answer
            assert stored["score"] == pytest.approx(task.score(sample, answer))
    # The name alone says nothing in another process; the object does.
    with pytest.raises(InputError, match="unknown task 'brightness'"):
        read_study(tmp_path)
    assert read_study(tmp_path, task).arms == result.arms


def test_its_cliff_is_measured_and_written(vlm, tmp_path):
    study = vlmflow.cliff_study(
        vlm, Brightness(), out=tmp_path, samples=3, calibration=2, batch=2, draws=20
    )
    assert study.task == "brightness"
    assert study.settings["samples"] == 3
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("cliff.html", "cliff.json", "cliff.pdf", "cliff.png", "layers.csv", "samples.csv"),
        *("cliff.sqlite", "cliff.lock"),
    }


def test_samples_are_drawn_by_name_and_from_objects():
    picture, question = vlmflow.sample("scenes-reading", index=3)
    assert isinstance(picture, Image.Image)
    assert question.startswith("What number is")
    _, question = vlmflow.sample(Brightness(), 2)
    assert question == "Bright?"
    with pytest.raises(InputError, match="index=50, but the test split of brightness has fewer"):
        vlmflow.sample(dataclasses.replace(Ended(), count=50), 50)
    with pytest.raises(InputError, match="index=-1; give an integer from 0"):
        vlmflow.sample("scenes-reading", -1)


@dataclasses.dataclass
class Ended:
    """The interface without the base class, and an end."""

    count: int = 2
    name: str = "brightness"
    metric: str = "accuracy"
    by_itself: bool = True
    max_new_tokens: int = 3

    def samples(self, split, count=None):
        return Brightness().samples(split, min(self.count, count or self.count))

    def score(self, sample, answer):
        return 1.0

    def scores(self, samples, answers):
        return [1.0] * len(samples)

    def summary(self, samples, answers):
        return {"accuracy": 1.0}


def test_the_interface_is_enough_and_what_lacks_it_is_refused():
    ended = Ended()
    assert as_task(ended) is ended
    with pytest.raises(InputError, match="task=object has no name and no metric"):
        as_task(object())
    with pytest.raises(InputError, match=r"Ended is a class; pass an instance: Ended\(\)"):
        as_task(Ended)


@pytest.mark.parametrize("value", ["Brightness", "INSTANCE"])
def test_an_installed_package_offers_one_by_entry_point(monkeypatch, value):
    entry = metadata.EntryPoint("own-brightness", f"tests.studies.test_own_tasks:{value}", GROUP)

    def entry_points(*, group, name=None):
        return (entry,) if group == GROUP and name in (None, entry.name) else ()

    monkeypatch.setattr("vlmflow.tasks.registry.metadata.entry_points", entry_points)
    assert find_task("own-brightness").metric == "share of a"
    assert "own-brightness" in {task.name for task in known_tasks()}


INSTANCE = Brightness()


def test_a_file_may_be_given_as_a_path(tmp_path):
    Image.new("RGB", (24, 24)).save(tmp_path / "p.png")
    file = tmp_path / "mine.jsonl"
    file.write_text('{"image": "p.png", "question": "What?", "answer": "red"}\n')
    assert [s.question for s in as_task(file).samples("test")] == [
        s.question for s in as_task(str(file)).samples("test")
    ]
