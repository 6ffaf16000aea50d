"""Drawn clips: the answers follow from the pixels alone, and tiny models run through the task."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

import vlmflow
from tests.support.tiny_video import named
from vlmflow.errors import InputError
from vlmflow.scenes.clips import FRAMES, KINDS_OF_QUESTIONS, clip_sample
from vlmflow.scenes.generator import COLOURS
from vlmflow.scenes.tasks import ALL_TASKS, CLIPS, SPLITS, scene_seed
from vlmflow.tasks.registry import find_task, known_tasks

PALETTE = np.array(list(COLOURS.values()), dtype=float)
NAMES = list(COLOURS)


# -------------------------------------------------------- an oracle that looks at pixels alone


def places(frame):
    """Median place of each colour's pixels, as shares of the sides: {colour: (x, y)}."""
    pixels = np.asarray(frame, dtype=float)
    away = ((pixels[:, :, None] - PALETTE) ** 2).sum(-1) ** 0.5
    nearest = np.where(away.min(-1) < 45, away.argmin(-1), -1)  # else backdrop, or an edge
    at = {}
    for number, colour in enumerate(NAMES):
        rows, columns = (nearest == number).nonzero()
        if len(rows) > 60:  # fewer are a mixture along an edge
            at[colour] = np.array([np.median(columns), np.median(rows)]) / pixels.shape[0]
    return at


def seen_moves(frames):
    """Read off who moves, when it begins and where to: {colour: (share of the clip, direction)}."""
    tracks = [places(frame) for frame in frames]
    moves = {}
    for colour in tracks[0]:
        track = np.stack([at[colour] for at in tracks])
        steps = np.diff(track, axis=0)
        moving = (np.abs(steps).max(1) > 0.05).nonzero()[0]
        if len(moving):
            dx, dy = track[-1] - track[0]
            sideways = "to the right" if dx > 0 else "to the left"
            way = sideways if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
            moves[colour] = (moving.mean() / (len(frames) - 2), way)
    return moves


def oracle(question, frames):
    """Answer with a letter, from the question's text and the pixels."""
    moves = seen_moves(frames)
    stem, *lines, _ = question.split("\n")
    options = {line[0]: line[3:] for line in lines}
    in_time = sorted(moves, key=lambda colour: moves[colour][0])

    def colours(text):
        return re.findall("|".join(NAMES), text)

    def lettered(fits):
        (letter,) = [letter for letter, option in options.items() if fits(option)]
        return letter

    if stem.startswith("Which way"):
        return lettered(lambda option: option == moves[colours(stem)[0]][1])
    if stem.startswith("When"):
        third = int(moves[colours(stem)[0]][0] * 3)
        return lettered(
            lambda option: option == ("at the beginning", "in the middle", "at the end")[third]
        )
    if "order" in stem:
        return lettered(lambda option: colours(option) == in_time)
    if "not move" in stem:
        return lettered(lambda option: colours(option)[0] not in moves)
    return lettered(lambda option: colours(option)[0] == in_time[-1 if "last" in stem else 0])


@pytest.mark.parametrize("kind", KINDS_OF_QUESTIONS)
def test_answers_follow_from_the_pixels(kind):
    first = KINDS_OF_QUESTIONS.index(kind)
    for split, number in (("test", 0), ("test", 1), ("calibration", 0)):
        drawn = clip_sample(split, first + number * len(KINDS_OF_QUESTIONS))
        assert drawn.question.kind == kind
        assert oracle(drawn.question.text, drawn.clip.frames()) == drawn.question.answer


def test_frames_in_another_order_have_another_answer():
    """The oracle reads time: backwards, what moved first moved last."""
    drawn = clip_sample("test", KINDS_OF_QUESTIONS.index("order"))
    frames = drawn.clip.frames()
    moves, backwards = seen_moves(frames), seen_moves(frames[::-1])
    order = sorted(moves, key=lambda colour: moves[colour][0])
    assert order == sorted(backwards, key=lambda colour: -backwards[colour][0])


# ------------------------------------------------------------------------------------ the task


def test_samples_are_the_same_every_time_and_splits_share_none():
    task = find_task(CLIPS)
    again, other = ([*task.samples(split, 7)] for split in ("test", "calibration"))
    for one, two in zip(task.samples("test", 7), again, strict=True):
        assert (one.key, one.question, one.references) == (two.key, two.question, two.references)
        pairs = zip(one.pictures[0].frames, two.pictures[0].frames, strict=True)
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    assert not {sample.question for sample in again} & {sample.question for sample in other}
    seeds = {scene_seed(name, split, 3) for name in (*ALL_TASKS, CLIPS) for split in SPLITS}
    assert len(seeds) == len(SPLITS) * (len(ALL_TASKS) + 1)


def test_every_letter_and_answer_is_right_about_as_often():
    drawn = [clip_sample("test", index) for index in range(600)]
    by_kind = {kind: [d for d in drawn if d.question.kind == kind] for kind in KINDS_OF_QUESTIONS}
    for kind, samples in by_kind.items():
        letters = Counter(sample.question.answer for sample in samples)
        options = len(samples[0].question.choices)
        # Five standard deviations of a binomial count.
        most = len(samples) / options + 5 * (len(samples) * (options - 1)) ** 0.5 / options
        assert len(letters) == options
        assert max(letters.values()) <= most, kind
    assert len({sample.question.content for sample in by_kind["when"]}) == 3
    assert len({sample.question.content for sample in by_kind["direction"]}) == 4
    for sample in drawn:
        assert len(set(sample.question.choices)) == len(sample.question.choices)
        assert len({thing.colour for thing in sample.clip.scene.objects}) == 4


def test_no_object_ever_leaves_the_picture_or_touches_another():
    for index in range(60):
        clip = clip_sample("test", index).clip
        for number in range(FRAMES):
            scene = clip.at(number)
            boxes = [thing.box for thing in scene.objects]
            for place, (x0, y0, x1, y1) in enumerate(boxes):
                assert min(x0, y0) >= 0
                assert max(x1, y1) <= scene.width
                for other in boxes[place + 1 :]:
                    apart = x1 < other[0] or other[2] < x0 or y1 < other[1] or other[3] < y0
                    assert apart


def test_the_task_scores_letters_and_is_listed():
    task = find_task(CLIPS)
    (sample,) = task.samples("test", 1)
    assert sample.group == "moved"
    letter = sample.references[0]
    named_option = sample.choices["ABCD".index(letter)]
    assert task.score(sample, letter) == task.score(sample, named_option) == 1
    wrong = next(other for other in "ABCD" if other != letter)
    assert task.score(sample, wrong) == task.score(sample, "nothing") == 0
    assert CLIPS in {known.name for known in known_tasks()}
    video, question = vlmflow.sample(CLIPS)
    assert question == sample.question
    assert len(video.frames) == FRAMES
    assert video.seconds[:3] == (0.0, 0.5, 1.0)
    with pytest.raises(InputError, match="index=-1, but samples are counted from 0"):
        clip_sample("test", -1)
    with pytest.raises(InputError, match="unknown split 'dev'"):
        clip_sample("dev")


def test_a_tiny_model_runs_through_a_study(tmp_path):
    result = vlmflow.study(
        named("qwen2_vl").lvlm(),
        CLIPS,
        truncations=[vlmflow.Truncation(layer=1, keep=0.5, within="picture")],
        controls=["random"],
        samples=2,
        calibration=2,
        timed=0,
        max_new_tokens=1,
        out=tmp_path / "study",
    )
    assert not result.failures
    names = [arm.name for arm in result.arms]
    assert "layer 1, keep 50 % by last_attention, within each picture" in names
    assert "random: layer 1, keep 50 % by random, within each picture" in names
