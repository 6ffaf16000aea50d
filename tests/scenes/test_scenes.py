"""The bundled pictures, questions and scores: exact ground truth, balanced and never leaking."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vlmflow.errors import InputError
from vlmflow.scenes import ALL_TASKS, SPLITS, sample, samples
from vlmflow.scenes.generator import (
    COLOURS,
    KINDS,
    SceneObject,
    category_statistics,
    draw_scene,
    render,
)
from vlmflow.scenes.questions import EXISTENCE_SUBSETS, LETTERS, REASONING, place
from vlmflow.scenes.tasks import mentions, scene_seed
from vlmflow.tasks.metrics.chair import chair

SEEDS = [(1, 2, index, 0) for index in range(60)]


def test_the_same_seed_draws_the_same_picture() -> None:
    first, second = draw_scene((3, 4)), draw_scene((3, 4))
    assert first == second
    assert np.array_equal(np.asarray(render(first)), np.asarray(render(second)))
    assert draw_scene((3, 5)) != first


def test_pictures_vary_in_shape() -> None:
    shapes = {(scene.width, scene.height) for scene in map(draw_scene, SEEDS)}
    assert len(shapes) > 50
    assert any(w > 1.2 * h for w, h in shapes)
    assert any(h > 1.2 * w for w, h in shapes)


def test_objects_stand_inside_the_central_square_without_overlap() -> None:
    for scene in map(draw_scene, SEEDS):
        left, top = (scene.width - scene.side) / 2, (scene.height - scene.side) / 2
        for index, thing in enumerate(scene.objects):
            for box in filter(None, (thing.box, thing.number_box)):
                assert left <= box[0] < box[2] <= left + scene.side
                assert top <= box[1] < box[3] <= top + scene.side
            for other in scene.objects[:index]:
                a, b = thing.box, other.box
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def _is_coloured_like(pixels: np.ndarray, thing: SceneObject) -> np.ndarray:
    want = np.array(COLOURS[thing.colour]) + np.array(thing.shade)
    return np.abs(pixels.astype(int) - np.clip(want, 0, 255)).max(-1) < 26


@pytest.mark.parametrize("seed", SEEDS[:25])
def test_the_box_is_where_the_colour_is(seed: tuple[int, ...]) -> None:
    scene = draw_scene(seed)
    pixels = np.asarray(render(scene))
    shared = Counter(thing.colour for thing in scene.objects)
    for thing in scene.objects:
        # Orange and yellow, brown and red blend into each other at the edges: look at lone colours.
        if shared[thing.colour] > 1 or thing.number is not None or thing.colour == "black":
            continue
        x0, y0, x1, y1 = thing.box
        rows, columns = np.nonzero(_is_coloured_like(pixels, thing))
        near = (columns > x0 - 3) & (columns < x1 + 2) & (rows > y0 - 3) & (rows < y1 + 2)
        rows, columns = rows[near], columns[near]
        bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.allclose(bounds, thing.box, atol=2.5), (thing.kind, bounds, thing.box)


def test_splits_and_tasks_never_share_a_seed() -> None:
    names = (*ALL_TASKS, "conversation")
    seeds = {
        (split, task): {scene_seed(task, split, index)[:3] for index in range(300)}
        for split in SPLITS
        for task in names
    }
    everything = [seed for group in seeds.values() for seed in group]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_samples_are_reproducible_and_differ_between_splits(task: str) -> None:
    assert sample(task, "test", 5) == sample(task, "test", 5)
    assert sample(task, "test", 5).scene != sample(task, "calibration", 5).scene
    with pytest.raises(InputError, match="unknown split"):
        sample(task, "validation", 0)
    with pytest.raises(InputError, match="counted from 0"):
        sample(task, "test", -1)


def test_unknown_task_says_what_there_is() -> None:
    with pytest.raises(InputError, match="scenes-reading"):
        sample("scenes-reeding")


def test_reasoning_answers_are_options_and_letters_are_balanced() -> None:
    questions = [item.task_question for item in samples("scenes-reasoning", "test", 600)]
    kinds = Counter(question.kind for question in questions)
    assert set(kinds) == {make.__name__ for make in REASONING}
    for question in questions:
        assert len(set(question.choices)) == len(question.choices) >= 2
        assert question.choices[LETTERS.index(question.answer)] == question.content
    four = [question.answer for question in questions if len(question.choices) == 4]
    for letter, times in Counter(four).items():
        assert 0.17 < times / len(four) < 0.33, letter


def test_count_questions_are_right() -> None:
    checked = 0
    for item in samples("scenes-reasoning", "test", 300):
        if item.task_question.kind != "count":
            continue
        subject = item.question.split("\n")[0].removeprefix("How many ").split(" are there")[0]
        if subject.endswith(" objects"):
            count = sum(t.colour == subject.split()[0] for t in item.scene.objects)
        else:
            count = sum(subject in (t.kind + "s", t.kind + "es") for t in item.scene.objects)
        assert item.task_question.content == str(count)
        checked += 1
    assert checked == 60


def test_relation_questions_are_right() -> None:
    for item in samples("scenes-reasoning", "test", 200):
        if item.task_question.kind != "relation":
            continue
        stem = item.question.split("\n")[0]
        a, b = stem.removeprefix("Where is the ").removesuffix("?").split(", seen from the ")
        places = {f"{t.colour} {t.kind}": t.centre for t in item.scene.objects}
        dx, dy = places[a][0] - places[b][0], places[a][1] - places[b][1]
        wanted = {
            "to the left": -dx,
            "to the right": dx,
            "above": -dy,
            "below": dy,
        }
        assert item.task_question.content == max(wanted, key=lambda key: wanted[key])


def test_place_questions_are_right() -> None:
    count = 0
    for seed in SEEDS:
        scene = draw_scene(seed)
        question = place(scene, np.random.default_rng(seed))
        if question is None:
            continue
        count += 1
        assert question.box is not None
        x0, y0, x1, y1 = question.box
        across = "left" if x0 + x1 < scene.width else "right"
        down = "above" if y0 + y1 < scene.height else "below"
        assert question.answer == f"{down} to the {across}"
    assert count > 40


def test_existence_is_balanced_in_every_subset_and_true() -> None:
    items = list(samples("scenes-existence", "test", 600))
    for subset in EXISTENCE_SUBSETS:
        answers = Counter(item.answer for item in items if item.task_question.subset == subset)
        assert answers == {"yes": 100, "no": 100}
    for item in items:
        objects = {f"{t.colour} {t.kind}" for t in item.scene.objects}
        named = next(f"{c} {k}" for c in COLOURS for k in KINDS if f" {c} {k} " in item.question)
        assert (named in objects) == (item.answer == "yes")


def test_popular_negatives_are_more_frequent_and_adversarial_ones_more_related() -> None:
    single, pairs = category_statistics()
    frequency: dict[str, list[float]] = {}
    relatedness: dict[str, list[float]] = {}
    for item in samples("scenes-existence", "test", 600):
        if item.answer == "yes":
            continue
        category = next((c, k) for c in COLOURS for k in KINDS if f" {c} {k} " in item.question)
        subset = item.task_question.subset
        assert subset is not None
        frequency.setdefault(subset, []).append(single[category])
        categories = {t.category for t in item.scene.objects}
        relatedness.setdefault(subset, []).append(
            sum(pairs[frozenset((category, other))] / single[other] for other in categories)
        )
    assert np.mean(frequency["popular"]) > 1.5 * np.mean(frequency["random"])
    assert np.mean(relatedness["adversarial"]) > 1.5 * np.mean(relatedness["random"])


def test_reading_asks_for_the_number_in_the_box() -> None:
    for item in samples("scenes-reading", "test", 100):
        assert item.task_question.box is not None
        holders = [t for t in item.scene.objects if str(t.number) == item.answer]
        assert len(holders) == 1
        assert f"{holders[0].colour} {holders[0].kind}?" in item.question
        x0, y0, x1, y1 = item.task_question.box
        assert x0 <= holders[0].box[0] < holders[0].box[2] <= x1
        assert y0 < y1


def test_caption_scores_on_a_worked_example() -> None:
    item = sample("scenes-caption", "test", 0)
    categories = {thing.category for thing in item.scene.objects}
    perfect = chair([item.answer], [item.objects], mentions)
    assert (perfect.named, perfect.chair_i, perfect.chair_s) == (1.0, 0.0, 0.0)
    absent = next((c, k) for c in COLOURS for k in KINDS if (c, k) not in categories)
    first = item.scene.objects[0]
    said = f"A {first.colour} {first.kind} and a {absent[0]} {absent[1]}."
    scored = chair([said], [item.objects], mentions)
    assert scored.named == pytest.approx(1 / len(categories))
    assert (scored.chair_i, scored.chair_s) == (0.5, 1.0)
    assert mentions("An ORANGE star, a redstar and blue circles") == [("orange", "star")]


def test_answers_are_compared_without_case_and_full_stop() -> None:
    item = sample("scenes-existence", "test", 0)
    assert item.accepts(f" {item.answer.upper()}. ")
    assert not item.accepts("perhaps")
