"""Seeded short clips: shapes that move one after the other, and questions about what moved when.

A clip is a scene whose objects have lanes of their own. In each third of the clip at most one of
them moves along its lane, all others stand still; nothing is ever hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.scenes.generator import COLOURS, KINDS, SIZES, Scene, SceneObject, render
from vlmflow.scenes.questions import Question, multiple_choice, name
from vlmflow.scenes.tasks import CLIPS, SPLITS, scene_seed

FRAMES, PER_SECOND = 10, 2
"""Frames of a clip, and how many of them a second has."""

OBJECTS = 4
PHASES = ("at the beginning", "in the middle", "at the end")
"""The thirds of a clip, in each of which at most one object moves."""

DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Where an object may move; y points down."""

KINDS_OF_QUESTIONS = ("moved", "direction", "when", "first", "order", "still")

# How many objects move in a clip that is asked about so; drawn from the first to the second number
_MOVERS = {
    "moved": (1, 1),
    "direction": (1, 3),
    "when": (1, 3),
    "first": (2, 3),
    "order": (3, 3),
    "still": (3, 3),
}

# In units of the picture's side; a lane is a quarter of it wide.
_RADII = {"small": (0.062, 0.076), "big": (0.092, 0.108)}
_WAY = (0.42, 0.55)
_MARGIN = 0.02


@dataclass(frozen=True)
class Move:
    """One object's move, in one third of a clip."""

    thing: int  # Index of the object
    phase: int  # Index into :data:`PHASES`
    direction: str  # One of :data:`DIRECTIONS`
    way: float  # How far, in pixels


@dataclass(frozen=True)
class Clip:
    """Everything that is in one clip."""

    scene: Scene  # What its first frame shows
    moves: tuple[Move, ...]  # In the order of time

    @property
    def seconds(self) -> tuple[float, ...]:
        """When each frame is shown."""
        return tuple(number / PER_SECOND for number in range(FRAMES))

    def at(self, number: int) -> Scene:
        """Return the scene that a frame shows."""
        things = list(self.scene.objects)
        steps = (FRAMES - 1) // len(PHASES)
        for move in self.moves:
            share = min(max(number - move.phase * steps, 0), steps) / steps
            dx, dy = DIRECTIONS[move.direction]
            x, y = things[move.thing].centre
            centre = (x + share * move.way * dx, y + share * move.way * dy)
            things[move.thing] = replace(things[move.thing], centre=centre)
        return replace(self.scene, objects=tuple(things))

    def frames(self) -> list[Image.Image]:
        """Paint the frames."""
        return [render(self.at(number)) for number in range(FRAMES)]


@dataclass(frozen=True)
class ClipSample:
    """One clip with one question."""

    split: str
    index: int
    clip: Clip
    question: Question


def clip_sample(split: str = "test", index: int = 0) -> ClipSample:
    """Draw one sample: the same arguments always give the same one.

    Parameters
    ----------
    split
        ``"train"``, ``"calibration"`` or ``"test"``; they never share a seed.
    index
        Any integer >= 0. The kinds of questions take turns.

    Raises
    ------
    InputError
        For an unknown split, or a negative index.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if index < 0:
        raise InputError(f"index={index}, but samples are counted from 0")
    seed = scene_seed(CLIPS, split, index)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    kind = KINDS_OF_QUESTIONS[index % len(KINDS_OF_QUESTIONS)]
    clip = draw_clip(seed, rng, kind)
    return ClipSample(split, index, clip, _ask(clip, kind, rng))


def draw_clip(seed: tuple[int, ...], rng: np.random.Generator, kind: str) -> Clip:
    """Draw a clip that a kind of question can be asked about."""
    side = int(rng.integers(180, 281))
    base = rng.integers(205, 250, 3)
    second = np.clip(base + rng.integers(-22, 23, 3), 190, 255)
    least, most = _MOVERS[kind]
    count = int(rng.integers(least, most + 1))
    phases = sorted(rng.permutation(len(PHASES))[:count].tolist())
    along = int(rng.integers(2))  # the axis of all lanes
    ways = [direction for direction, shift in DIRECTIONS.items() if shift[along]]
    moves = [
        Move(thing, phase, str(rng.choice(ways)), float(rng.uniform(*_WAY)) * side)
        for thing, phase in zip(rng.permutation(OBJECTS)[:count].tolist(), phases, strict=True)
    ]
    moved = {move.thing: move for move in moves}
    colours = rng.permutation(list(COLOURS))[:OBJECTS].tolist()
    things = [
        _thing(rng, colour, lane, along, side, moved.get(lane))
        for lane, colour in enumerate(colours)
    ]
    backdrop = str(rng.choice(["plain", "gradient", "stripes", "dots", "checks"]))
    tones = (tuple(int(v) for v in base), tuple(int(v) for v in second))
    scene = Scene(seed, side, side, tuple(things), backdrop, tones)  # type: ignore[arg-type]
    return Clip(scene, tuple(moves))


def _thing(
    rng: np.random.Generator, colour: str, lane: int, along: int, side: int, move: Move | None
) -> SceneObject:
    """Draw an object in its lane, with room for its move."""
    size = SIZES[int(rng.integers(2))]
    radius = float(rng.uniform(*_RADII[size]))
    low, high = _MARGIN + radius, 1 - _MARGIN - radius
    if move is not None:
        ahead = DIRECTIONS[move.direction][along]
        way = move.way / side
        low, high = (low, high - way) if ahead > 0 else (low + way, high)
    slack = 1 / (2 * OBJECTS) - radius - 0.008  # the lane's, on either side
    across = (lane + 0.5) / OBJECTS + float(rng.uniform(-slack, slack))
    place = float(rng.uniform(low, high))
    x, y = (place, across) if along == 0 else (across, place)
    return SceneObject(
        kind=KINDS[int(rng.integers(len(KINDS)))],
        colour=colour,
        size=size,
        centre=(x * side, y * side),
        radius=radius * side,
        number=None,
        number_box=None,
        inside=False,
        angle=float(rng.uniform(-9, 9)),
        shade=tuple(int(v) for v in rng.integers(-14, 15, 3)),  # type: ignore[arg-type]
    )


def _ask(clip: Clip, kind: str, rng: np.random.Generator) -> Question:
    things = [f"the {name(thing)}" for thing in clip.scene.objects]
    movers = [things[move.thing] for move in clip.moves]
    move = clip.moves[int(rng.integers(len(clip.moves)))]

    def among(stem: str, answer: str, options: Sequence[str]) -> Question:
        others = [option for option in options if option != answer]
        return multiple_choice(rng, kind, stem, answer, others)

    if kind == "moved":
        return among("Which object moves?", movers[0], things)
    if kind == "direction":
        stem = f"Which way does {things[move.thing]} move?"
        return among(stem, move.direction, list(DIRECTIONS))
    if kind == "when":
        return among(f"When does {things[move.thing]} move?", PHASES[move.phase], PHASES)
    if kind == "first":
        last = bool(rng.integers(2))
        return among(
            f"Which object moves {'last' if last else 'first'}?", movers[-1 if last else 0], things
        )
    if kind == "order":
        orders = [", then ".join(order) for order in permutations(movers)]
        wrong = [orders[1 + int(number)] for number in rng.permutation(len(orders) - 1)[:3]]
        return among("In which order do the objects move?", orders[0], [orders[0], *wrong])
    (still,) = set(things) - set(movers)
    return among("Which object does not move?", still, things)
