"""Every model that takes videos: measuring, truncation and boxes, against the slow way."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import vlmflow
from tests.flow.test_signals import SIGNALS, assert_agrees
from tests.lvlm.test_families import ANSWERS, POLICIES, QUESTIONS
from tests.lvlm.test_family_boxes import blinded, embeddings, shared, windows
from tests.support.families import LAYERS, PATCH, SIZES, TinyFamily, picture
from tests.support.masked_truncation import masked_logits
from tests.support.reference import measure_slowly
from tests.support.tiny_family import TILE
from tests.support.tiny_tiled import llava_onevision
from tests.support.tiny_video import WITHOUT_EXPERTS, video
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.llava_cam_smooth import LlavaCamSmooth
from vlmflow.flow.signals.registry import DEFAULT_SIGNALS
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.families.table import SUPPORTED
from vlmflow.lvlm.tokens import end_ids
from vlmflow.removal.curve import removal_curves
from vlmflow.truncation import Truncation
from vlmflow.truncation.shared_answers import shared_answers

BY_PLACE = {row.model_type for row in SUPPORTED if row.by_place}
each_family = pytest.mark.parametrize("family", WITHOUT_EXPERTS, ids=lambda family: family.name)


def prompts(vlm, answers=ANSWERS):
    """Two prompts of different lengths: a video; a picture, a video of another shape, a picture."""
    beside = [picture(7, SIZES[0]), video(size=SIZES[1], seed=4), picture(8, SIZES[1])]
    if vlm.model.config.model_type == "glm4v":  # takes no pictures beside videos
        beside = [video(size=SIZES[1], seed=4), video(5, seed=9)]
    return [
        vlm.prepare(shown, question, answer)
        for shown, question, answer in zip(([video()], beside), QUESTIONS, answers, strict=True)
    ]


# ------------------------------------------------------------------------------- measured


@each_family
def test_flow_agrees_with_eager_attention_also_in_a_padded_batch(family):
    vlm, eager = family.lvlm(), family.lvlm("eager")
    batch = prompts(vlm)
    inputs, layouts = collate(batch, pad_id(vlm.processor.tokenizer))
    results = measure(vlm.model, vlm.decoder_layers, inputs, layouts, ExplainOptions(SIGNALS))
    for prompt, together in zip(batch, results, strict=True):
        truth = measure_slowly(
            eager.model, eager.decoder_layers, prompt.inputs, prompt.layout, "logprob",
            family.norm,
        )  # fmt: skip
        # float32 on both sides: 1e-4 of a layer's largest value is some hundred roundings.
        assert_agrees(together, truth, 1e-4)


@each_family
def test_explaining_gives_a_map_per_group_of_frames(family):
    vlm = family.lvlm()
    shown = video(5, SIZES[1])
    flow = vlm.explain(
        shown, QUESTIONS[0], max_new_tokens=2, signals=[*DEFAULT_SIGNALS, LlavaCamSmooth(copies=2)]
    )
    groups = -(-5 // vlm.family.frames_together(vlm.processor))
    assert len(flow.pictures) == len(flow.layout.frames) == groups
    maps = [flow.pixel_map("flow_map", image=image) for image in range(groups)]
    assert all(
        pixel_map.shape == SIZES[1][::-1] and np.isfinite(pixel_map).all() for pixel_map in maps
    )
    assert len({pixel_map.tobytes() for pixel_map in maps}) == groups
    # Noise moves smoothed LLaVA-CAM: it reaches the frames.
    assert not np.array_equal(flow.maps["llava_cam_smooth"], flow.maps["llava_cam"])


# ------------------------------------------------------------------------------ truncated


@each_family
def test_keeping_all_changes_nothing(family):
    vlm = family.lvlm()
    policy = Truncation(2, 1.0, "last_attention")
    for prompt in prompts(vlm, (None, None)):
        untouched = vlm.generate_ids(prompt, max_new_tokens=5)
        assert vlm.generate_ids(prompt, max_new_tokens=5, truncation=policy) == untouched
        with torch.no_grad():
            expected = vlm.model(**prompt.inputs).logits
            with policy(vlm.model):
                logits = vlm.model(**prompt.inputs).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@each_family
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_truncation_equals_hiding_tokens_behind_masks(family, policy):
    """Logits of prompt and generated tokens."""
    vlm = family.lvlm("eager")
    for prompt in prompts(vlm, (None, None)):
        length = len(prompt.layout)
        _, output = vlm.generate_with(
            prompt, max_new_tokens=3, truncation=policy, options={
                "min_new_tokens": 3, "output_logits": True, "suppress_tokens":
                [*vlm.image_token_ids, *end_ids(vlm.model, vlm.processor.tokenizer)],
            },
        )  # fmt: skip
        whole = vlm.with_answer(prompt, output.sequences[0, length:-1].tolist())
        expected, _ = masked_logits(
            vlm.model, vlm.decoder_layers, whole, policy, vlm.image_token_id
        )
        torch.testing.assert_close(
            torch.cat(output.logits), expected[length - 1 :], rtol=1e-4, atol=5e-5
        )


@each_family
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_truncated_batch_is_its_rows(family, policy):
    vlm = family.lvlm()
    batch = prompts(vlm, (None, None))
    together = vlm.generate_batch(batch, max_new_tokens=4, truncation=policy)
    alone = [vlm.generate_ids(prompt, max_new_tokens=4, truncation=policy) for prompt in batch]
    assert together == alone


@each_family
@pytest.mark.parametrize(("keep", "ranking"), [(0, None), (3, "diversity")])
def test_a_removal_curve_is_one_truncation_per_layer(family, keep, ranking):
    vlm = family.lvlm()
    batch = prompts(vlm)
    curves = removal_curves(vlm, batch, keep=keep, rank_by=ranking)
    for prompt, curve in zip(batch, curves, strict=True):
        rows = torch.from_numpy(prompt.layout.answer_rows)
        ids = torch.tensor(prompt.answer_ids)[:, None]
        assert curve.layers == tuple(range(LAYERS))
        with torch.no_grad():
            for number, layer in enumerate(curve.layers):
                with Truncation(layer, keep, ranking or "value_norm")(vlm.model):
                    logits = vlm.model(**prompt.inputs).logits[0, rows]
                expected = logits.log_softmax(-1).gather(1, ids)[:, 0].numpy()
                np.testing.assert_allclose(curve.logprob[number], expected, rtol=1e-3, atol=5e-5)


@each_family
def test_shared_answers_are_those_of_generate(family):
    vlm = family.lvlm()
    policies = [Truncation(1, 0), Truncation((1, 2), (0.5, 0.25), "random")]
    for prompt in prompts(vlm, (None, None)):
        expected = [
            vlm.generate_ids(prompt, max_new_tokens=3, truncation=policy)
            for policy in (None, *policies)
        ]
        assert shared_answers(vlm, [prompt], policies, max_new_tokens=3) == [expected]


@each_family
def test_an_oracle_ranking_reads_videos(family):
    vlm = family.lvlm()
    prompt = vlm.prepare(video(), QUESTIONS[0])
    policy = Truncation(2, 3, "saliency")
    with policy(vlm.model), torch.no_grad():
        assert torch.isfinite(vlm.model(**prompt.inputs).logits[0, -1]).all()


@pytest.mark.parametrize(
    "family",
    [family for family in WITHOUT_EXPERTS if family.model_type in BY_PLACE],
    ids=lambda family: family.name,
)
def test_places_are_those_of_the_grids_also_while_generating(family, monkeypatch):
    """Each group of frames counts as a picture of its own, in a batch and when `generate` keeps the
    shapes to itself; many frames a second have one time on the first axis."""
    vlm = family.lvlm()
    batch = [
        *prompts(vlm, (None, None)),
        vlm.prepare(video(6, (20, 20), every=0.02, seed=3), QUESTIONS[0]),
    ]
    inputs, _ = collate(batch, pad_id(vlm.processor.tokenizer))
    seen, first = [], 0
    places = type(vlm.family).places

    def kept(self, first, tokens, inputs, config):
        seen.append(places(self, first, tokens, inputs, config))
        return seen[-1]

    monkeypatch.setattr(type(vlm.family), "places", kept)
    for prompt in batch:
        seen.clear()
        positions = prompt.layout.image_positions
        vlm.family.places(first, len(positions), inputs, vlm.model.config)
        vlm.family.places(0, len(positions), prompt.inputs, vlm.model.config)
        first += len(positions)
        vlm.generate_ids(prompt, max_new_tokens=1, truncation=Truncation(1, 3, "uniform"))
        assert len(seen) == 3
        for result in seen:
            for grid in prompt.layout.grids:
                at = np.searchsorted(positions, grid.positions)
                assert (result[at, 0] == grid.image).all()
                rows_and_columns = np.moveaxis(np.indices(grid.shape), 0, -1)
                np.testing.assert_array_equal(result[at, 1:], rows_and_columns)


# ------------------------------------------------------------------------------------------ boxes

# Of an odd number of patches, half as many tokens draw on patches around their share.
ODD = TinyFamily(
    "llava_onevision", partial(llava_onevision, side=TILE + PATCH), slack=PATCH, variant="odd"
)
BOXED = [*WITHOUT_EXPERTS, ODD]


@pytest.fixture(scope="module")
def blind():
    """A model of each family whose vision tower sees one patch at a time, made once."""
    made = {}

    def make(family):
        if family.name not in made:
            made[family.name] = blinded(family)
        return made[family.name]

    return make


def painted(size, number, window):
    """A black video of three frames, a part of one of them white."""
    frames = [np.zeros((size[1], size[0], 3), np.uint8) for _ in range(3)]
    x0, y0, x1, y1 = window
    frames[number][y0:y1, x0:x1] = 255
    return vlmflow.Video([Image.fromarray(frame) for frame in frames], seconds=[0, 1, 2])


def disagreements(family, vlm, size):
    """Paint windows of single frames; say which tokens move though they show another place or
    other frames, or do not though they show this one."""
    before = vlm.prepare(painted(size, 0, (0, 0, 0, 0)), "What is it?")
    untouched = embeddings(vlm, before)
    positions, wrong = before.layout.image_positions, []
    draw = np.random.default_rng(0)
    for number in range(3):
        grids = [
            grid
            for grid in before.layout.grids
            if before.layout.frames[grid.image].first
            <= number
            <= before.layout.frames[grid.image].last
        ]
        (grid,) = grids
        own = np.searchsorted(positions, grid.positions.ravel())
        boxes = grid.boxes.reshape(-1, 4)
        chosen = sorted({0, len(boxes) - 1, *draw.integers(0, len(boxes), 2).tolist()})
        for window in windows(size, boxes[chosen], draw):
            x0, y0, x1, y1 = window
            if x0 >= x1 or y0 >= y1:
                continue
            result = embeddings(vlm, vlm.prepare(painted(size, number, window), "What is it?"))
            moved = np.abs(result - untouched).max(axis=1) > 1e-5
            others = np.setdiff1d(np.flatnonzero(moved), own)
            wrong += [f"frame {number} moves token {index} of others" for index in others]
            for index, box in zip(own, boxes, strict=True):
                step = (box[2:] - box[:2]) / PATCH
                apart = shared(box, window)
                if moved[index] and (apart < -family.slack * np.maximum(step, 1) - 1e-6).any():
                    wrong.append(f"{window} moves token {index} at {box.round(2)}")
                if not moved[index] and (apart > 0.5 * (box[2:] - box[:2]) + step).all():
                    wrong.append(f"{window} does not move token {index} at {box.round(2)}")
    return wrong


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (20, 120), (3, 7), (300, 201)], ids=str)
@pytest.mark.parametrize("family", BOXED, ids=lambda family: family.name)
def test_painting_one_frame_moves_its_tokens_and_no_other(family, size, blind):
    assert disagreements(family, blind(family), size) == []


@pytest.mark.parametrize("family", BOXED, ids=lambda family: family.name)
def test_the_markers_notice_frames_that_are_one_off(family, blind, monkeypatch):
    vlm = blind(family)
    real = type(vlm.family).video_grids

    def swapped(self, prompt):
        first, second, *others = real(self, prompt)
        return (
            dataclasses.replace(first, positions=second.positions),
            dataclasses.replace(second, positions=first.positions),
            *others,
        )

    monkeypatch.setattr(type(vlm.family), "video_grids", swapped)
    assert disagreements(family, vlm, (57, 41))


def test_only_what_ends_a_video_has_no_place():
    for family in BOXED:
        layout = family.lvlm().prepare([video(), video(seed=3)], QUESTIONS[0]).layout
        in_grids = np.concatenate([grid.positions.ravel() for grid in layout.grids])
        placeless = np.setdiff1d(layout.image_positions, in_grids).tolist()
        assert len(set(in_grids)) == len(in_grids)
        ends = [layout.grids[2].positions.max() + 1, layout.grids[5].positions.max() + 1] if (
            family.model_type == "llava_onevision"
        ) else []  # fmt: skip
        assert placeless == ends
