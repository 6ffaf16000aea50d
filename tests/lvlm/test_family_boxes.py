"""Boxes of every family against its real processor and its real packing of image features.

The vision tower is made blind to everything but a token's own patches: its attention gives zeros.
Then a token's embedding moves exactly when pixels behind it change, and the model's own code says
which position of the sequence that is. Pictures are resized by nearest neighbour, so that no
filter carries a change further than its pixel.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.families import PATCH, WITHOUT_EXPERTS
from tests.support.on_torch import same_on_torch

each_family = pytest.mark.parametrize(
    "family",
    [family for family in WITHOUT_EXPERTS if not family.queries],
    ids=lambda family: family.name,
)

SIZES = [(32, 32), (57, 41), (41, 57), (120, 20), (20, 120), (3, 7), (2, 2), (500, 333), (64, 63)]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))

NAMES = ("vision_tower", "vision_model", "visual")


class _EnoughError(Exception):
    """The decoder has been reached."""


@pytest.fixture(scope="module")
def blind():
    """A model of each family whose vision tower has no attention, made once."""
    made = {}

    def make(family):
        if family.name not in made:
            made[family.name] = blinded(family)
        return made[family.name]

    return make


def blinded(family):
    """A model whose vision tower sees one patch at a time."""
    vlm = family.lvlm()
    for name in ("image_processor", "video_processor"):
        if getattr(vlm.processor, name, None) is not None:
            getattr(vlm.processor, name).resample = Image.Resampling.NEAREST
    inner = vlm.model.model
    tower = next(getattr(inner, name) for name in NAMES if hasattr(inner, name))
    for module in tower.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_hook(_zeros)
    return vlm


def _zeros(_module, _args, output):
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def embeddings(vlm, prompt):
    """What the first decoder layer is given at the image positions, (P, width)."""
    seen = []

    def keep(_module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _EnoughError

    handle = vlm.decoder_layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            vlm.model(**prompt.inputs)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return seen[0][0, torch.from_numpy(prompt.layout.image_positions)].numpy()


def prepare(vlm, picture):
    return vlm.prepare(Image.fromarray(picture), "What is it?")


def tokens_of(layout):
    """Index among the image tokens, box and tower pixels per side of every token with a box."""
    tokens = []
    for grid in layout.grids:
        index = np.searchsorted(layout.image_positions, grid.positions.ravel())
        tokens += list(zip(index.tolist(), grid.boxes.reshape(-1, 4), strict=True))
    return tokens


def windows(size, boxes, draw):
    """Rectangles of whole pixels: under some boxes, and anywhere."""
    width, height = size
    for box in boxes:
        x0, y0 = np.ceil(box[:2] - 1e-6).astype(int)
        x1, y1 = np.floor(box[2:] + 1e-6).astype(int)
        if x0 >= x1:
            x0 = int(np.floor((box[0] + box[2]) / 2))
            x1 = x0 + 1
        if y0 >= y1:
            y0 = int(np.floor((box[1] + box[3]) / 2))
            y1 = y0 + 1
        yield max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    for _ in range(4):
        x0, y0 = draw.integers(0, width), draw.integers(0, height)
        yield x0, y0, draw.integers(x0, width) + 1, draw.integers(y0, height) + 1


def shared(box, window):
    """Length that a box shares with a window on each axis, (2,)."""
    return np.minimum(box[2:], window[2:]) - np.maximum(box[:2], window[:2])


def black_one(family, vlm, size):
    """A black picture and its prompt."""
    black = np.zeros((size[1], size[0], 3), np.uint8)
    prompt = prepare(vlm, black)
    if not family.single and len(prompt.layout.image_positions) == 1:
        pytest.skip("transformers squeezes the only axis of a single token away and fails")
    return black, prompt


def disagreements(family, vlm, size):
    """Paint windows; say which tokens move though their box is elsewhere, or do not though it is
    there."""
    black, before = black_one(family, vlm, size)
    untouched = embeddings(vlm, before)
    tokens = tokens_of(before.layout)
    draw = np.random.default_rng(0)
    chosen = sorted({0, len(tokens) - 1, *draw.integers(0, len(tokens), 6).tolist()})
    wrong = []
    for window in windows(size, [tokens[number][1] for number in chosen], draw):
        x0, y0, x1, y1 = window
        if x0 >= x1 or y0 >= y1:
            continue
        picture = black.copy()
        picture[y0:y1, x0:x1] = 255
        result = embeddings(vlm, prepare(vlm, picture))
        moved = np.abs(result - untouched).max(axis=1) > 1e-5
        for index, box in tokens:
            # A tower pixel in the picture's, for how far it may look.
            step = (box[2:] - box[:2]) / PATCH
            apart = shared(box, window)
            if moved[index] and (apart < -family.slack * np.maximum(step, 1) - 1e-6).any():
                wrong.append(f"{window} moves token {index} at {box.round(2)}")
            if not moved[index] and (apart > 0.5 * (box[2:] - box[:2]) + step).all():
                wrong.append(f"{window} does not move token {index} at {box.round(2)}")
        boxed = {index for index, _ in tokens}
        wrong += [f"{index} has no box" for index in np.flatnonzero(moved) if index not in boxed]
    return wrong


@each_family
@each_size
def test_painting_a_box_moves_its_tokens_and_no_other(family, size, blind):
    assert disagreements(family, blind(family), size) == []


@each_family
@each_size
def test_every_token_has_one_box_but_those_that_show_no_place(family, size, blind):
    vlm = blind(family)
    _, black = black_one(family, vlm, size)
    white = prepare(vlm, np.full((size[1], size[0], 3), 255, np.uint8))
    moved = np.abs(embeddings(vlm, white) - embeddings(vlm, black)).max(axis=1) > 1e-5
    tokens = tokens_of(black.layout)
    boxed = sorted(index for index, _ in tokens)
    assert len(set(boxed)) == len(boxed)
    inside = [
        index
        for index, box in tokens
        if (shared(box, (0, 0, *size)) > (box[2:] - box[:2]) / PATCH).all()
    ]
    assert set(inside) <= set(np.flatnonzero(moved)) <= set(boxed)


@each_family
def test_the_markers_notice_boxes_that_are_one_token_off(family, blind, monkeypatch):
    vlm = blind(family)
    real = type(vlm.family).grids

    def shifted(self, prompt):
        from dataclasses import replace

        return tuple(
            replace(grid, positions=np.roll(grid.positions, 1, axis=1))
            for grid in real(self, prompt)
        )

    monkeypatch.setattr(type(vlm.family), "grids", shifted)
    assert disagreements(family, vlm, (96, 64))


@each_family
def test_pictures_of_very_different_shape_keep_their_own_boxes(family, blind):
    """Two pictures in one prompt: painting one never moves the other's tokens."""
    vlm = blind(family)
    sizes = [(70, 20), (70, 20) if family.one_shape else (24, 50)]
    black = [Image.new("RGB", size) for size in sizes]
    before = vlm.prepare(black, "What is it?")
    untouched = embeddings(vlm, before)
    for number, size in enumerate(sizes):
        pictures = [*black[:number], Image.new("RGB", size, "white"), *black[number + 1 :]]
        result = embeddings(vlm, vlm.prepare(pictures, "What is it?"))
        moved = np.flatnonzero(np.abs(result - untouched).max(axis=1) > 1e-5)
        own = [grid for grid in before.layout.grids if grid.image == number]
        positions = np.concatenate([grid.positions.ravel() for grid in own])
        assert set(before.layout.image_positions[moved]) <= set(positions)
        assert moved.size


@pytest.mark.parametrize("size", [(57, 41), (20, 121)], ids=str)
@each_family
def test_the_torchvision_back_end_has_the_same_boxes(family, size, blind, monkeypatch):
    vlm = blind(family)
    pil = vlm.processor.image_processor
    if pil.backend == "torchvision":
        pytest.skip("this image processor has a torchvision back end only, tested above")
    monkeypatch.setattr(vlm.processor, "image_processor", same_on_torch(pil))
    assert vlm.processor.image_processor.backend == "torchvision"
    assert disagreements(family, vlm, size) == []
