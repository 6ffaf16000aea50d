"""Videos come and go by groups of frames and by area; the answers are the model's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.families import SIZES, picture
from tests.support.tiny_video import named, video
from vlmflow.errors import InputError
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.videos import Frames
from vlmflow.trust.curves import measure_curves, picture_steps
from vlmflow.trust.passes import Passes
from vlmflow.trust.replacement import background
from vlmflow.trust.scoring import answer_logprobs, logprobs_with_tokens

SIZE = 32
REGION = np.s_[4:12, 8:24]
"""An eighth of a frame."""
GROUPS = (Frames(0, 0, 1), Frames(0, 2, 3), Frames(0, 4, 4))
"""Five frames, two of which share image tokens; the last stands alone."""


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    return vlmflow.Video([Image.fromarray(frame) for frame in frames])


def reads_a_region(shown, frame):
    """A model that is as sure as the share of its region of one frame that is shown."""
    whole = np.asarray(shown.frames[frame])[REGION]

    def score(videos):
        seen = [(np.asarray(own.frames[frame])[REGION] == whole).all(-1).mean() for own in videos]
        return np.array(seen)

    return score


def on_region(group):
    values = np.zeros((len(GROUPS), SIZE, SIZE))
    values[group][REGION] = 1
    return values


# A frame's eighth in two of five frames is a twentieth of the video; in one of five, a fortieth.
@pytest.mark.parametrize(("group", "frame", "parts"), [(1, 3, 20), (2, 4, 40)])
def test_the_perfect_map_scores_best_and_its_inverse_worst(noise, group, frame, parts):
    score = reads_a_region(noise, frame)
    settings = {"frames": GROUPS, "steps": parts}
    best = measure_curves(noise, on_region(group), score, **settings)
    worst = measure_curves(noise, -on_region(group), score, **settings)
    # All of it comes in the first step, and goes in the first.
    assert best.insertion[:2].tolist() == [0, 1]
    assert best.areas == pytest.approx((1 - 1 / (2 * parts), 1 / (2 * parts)), abs=1e-9)
    assert worst.difference == pytest.approx(-best.difference)
    # Coarse maps, as of tokens: of noise every order would come to 0.
    rng = np.random.default_rng(1)
    drawn = [np.kron(rng.random((3, 4, 4)), np.ones((8, 8))) for _ in range(30)]
    others = [
        measure_curves(noise, values, score, **{**settings, "steps": 10}).difference
        for values in drawn
    ]
    assert worst.difference < min(others) < max(others) < best.difference
    assert abs(np.mean(others)) < 3 * np.std(others) / np.sqrt(len(others))


@pytest.mark.parametrize("replacement", ["black", "blur", "mean"])
def test_frames_of_a_group_come_together_and_each_is_replaced_by_its_own(noise, replacement):
    values = np.random.default_rng(2).random((3, SIZE, SIZE))
    stages = picture_steps([noise], list(values), frames=GROUPS, replacement=replacement, steps=10)
    assert len(stages) == 20
    for stage, share in ((0, 0), (3, 0.3), (7, 0.7), (10, 1), (13, 0.7), (18, 0.2)):
        (shown,) = stages[stage]
        assert shown.seconds == noise.seconds
        there = []
        for own, frame in zip(shown.frames, noise.frames, strict=True):
            pixels, hidden = np.asarray(frame), background(frame, replacement)
            own = np.asarray(own)
            assert ((own == pixels) | (own == hidden)).all()
            there.append((own == pixels).all(-1) & (pixels != hidden).any(-1))
        assert np.mean(there) == pytest.approx(share, abs=2e-3)
        np.testing.assert_array_equal(there[0], there[1])
        np.testing.assert_array_equal(there[2], there[3])


def test_pictures_come_and_go_with_videos(noise):
    """The prompt shows two frames, a picture, and a frame; the map prefers the picture."""
    two = replace(noise, frames=noise.frames[:2])
    one = replace(noise, frames=noise.frames[2:3])
    maps = [np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE)), np.full((SIZE, SIZE), 0.5)]
    frames = (Frames(0, 0, 1), None, Frames(1, 0, 0))
    stages = picture_steps(
        [two, noise.frames[4], one], maps, frames=frames, replacement="black", steps=4
    )
    seen = [
        [(np.asarray(own) > 0).all(-1).mean() for own in (*first.frames, shown, *last.frames)]
        for first, shown, last in stages[1:5]
    ]
    assert seen[0] == [0, 0, 1, 0]
    assert seen[1] == [0, 0, 1, 1]
    assert seen[2][0] == seen[2][1] == pytest.approx(0.5, abs=1e-3)
    assert seen[3] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_a_map_of_a_video_is_tested_with_plain_forward_passes(name):
    vlm = named(name).lvlm()
    shown = video(3)
    pair = [picture(9, SIZES[1]), shown]
    flow = vlm.explain(pair, "What?", "1 2", signals=["attention"], gradients=False)
    group = len(flow.layout.frames) - 1
    tested = vlm.trust(flow, "attention", 1, images=pair, image=group, steps=3)
    assert tested.image == group
    for end, frames in (
        (-1, shown.frames),
        (0, [Image.new("RGB", SIZES[0])] * 3),
    ):
        prompt = vlm.prepare([pair[0], vlmflow.Video(frames, shown.seconds)], "What?", "1 2")
        with torch.no_grad():
            probabilities = vlm.model(**prompt.inputs).logits[0].softmax(-1)
        own = probabilities[prompt.layout.answer_rows, list(prompt.answer_ids)].mean()
        assert tested.curves.insertion[end] == pytest.approx(float(own), rel=1e-3)
        assert tested.curves.deletion[-1 - end] == pytest.approx(float(own), rel=1e-3)
    # Any group of it stands for the whole video; the control is one map for each group.
    first = vlm.trust(flow, "attention", 1, images=pair, image=1, steps=3)
    assert first.curves.insertion == pytest.approx(tested.curves.insertion)
    assert vlm.trust(flow, "edges", images=pair, image=1, steps=1).is_control
    with pytest.raises(InputError, match="pass the whole video as images="):
        vlm.trust(flow, "attention", 1)
    with pytest.raises(InputError, match="measured on other frames of a video"):
        vlm.trust(flow, "attention", 1, images=[pair[0], video(2)])
    other = [Image.new("RGB", (33, 20))] * 3
    with pytest.raises(InputError, match="images are not the result's"):
        vlm.trust(flow, "attention", 1, images=[pair[0], vlmflow.Video(other, shown.seconds)])


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v"])
def test_image_tokens_of_videos_are_removed_before_the_decoder(name):
    vlm = named(name).lvlm()
    prompt = vlm.prepare(video(4), "What?", "1 2")
    tokens = prompt.layout.image_positions.size
    shown = np.stack([np.full(tokens, True), np.full(tokens, False)])
    passes = Passes(2, vlm.device)
    whole, none = logprobs_with_tokens(vlm, prompt, shown, passes)
    (plain,) = answer_logprobs(vlm, [prompt.visuals], "What?", prompt.answer_ids, passes=passes)
    np.testing.assert_allclose(whole, plain, rtol=1e-4)
    with torch.no_grad(), vlmflow.Truncation(0, 0)(vlm.model):
        rows = torch.from_numpy(prompt.layout.answer_rows)
        logits = logits_at(vlm.model, prompt.inputs, rows)[0].log_softmax(-1)
    np.testing.assert_allclose(none, logits[range(2), list(prompt.answer_ids)], rtol=1e-3)
