"""Seeded pictures of coloured shapes and printed numbers, with exact ground truth.

A scene is drawn in two steps: :func:`draw_scene` decides everything (and is cheap), :func:`render`
paints it. All objects stand inside the central square of a picture that is usually not square, as
in the photographs that CLIP's processor crops; the margins hold only background.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "blue": (36, 98, 204),
    "green": (44, 150, 60),
    "yellow": (240, 200, 30),
    "purple": (134, 62, 168),
    "orange": (242, 128, 24),
    "brown": (124, 78, 46),
    "black": (34, 34, 38),
}
SIZES = ("small", "big")
MIN_OBJECTS, MAX_OBJECTS = 3, 6

# Uneven on purpose: "popular" and "co-occurring" absent objects must exist for existence questions.
_KIND_WEIGHTS = np.array([1.7, 1.5, 1.3, 1.1, 0.9, 0.8, 0.7, 0.6])
_COLOUR_WEIGHTS = np.array([1.6, 1.4, 1.2, 1.0, 0.9, 0.9, 0.7, 0.7])
_LIKENESS = 0.45  # chance that an object repeats the kind or the colour of an earlier one

# In units of the central square's side.
_RADII = {"small": (0.062, 0.076), "big": (0.115, 0.135)}
_TAG = (0.162, 0.114)  # width and height of the white tag that carries a number
_GAP = 0.012  # between a small shape and its tag
_APART = 0.018  # between any two things; a tag next to its shape needs more, to be clearly its own
_TAG_APART = 0.07
_MARGIN = 0.02

Box = tuple[float, float, float, float]
# size, (x, y, radius) in the unit square, the number's tag, and whether that lies inside the shape
_Placed = tuple[str, tuple[float, float, float], Box | None, bool]


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene."""

    # Entries of :data:`KINDS`, :data:`COLOURS` and :data:`SIZES`
    kind: str
    colour: str
    size: str
    # Where the shape stands and how far it reaches, in the picture's pixels
    centre: tuple[float, float]
    radius: float
    number: int | None  # The two-digit number printed in or next to the shape, or ``None``
    number_box: Box | None  # Box of the number's tag in the picture's pixels, or ``None``
    inside: bool  # Whether the tag lies inside the shape (big shapes) or next to it (small ones)
    angle: float  # Rotation in degrees
    # Offset added to each colour channel, so that no two reds are the same
    shade: tuple[int, int, int]

    @property
    def outline(self) -> tuple[tuple[float, float], ...]:
        """Corners in the picture's pixels; a circle or ring gives its four extremes."""
        turn = math.radians(self.angle) if self.kind not in ("circle", "ring") else 0.0
        (cx, cy), cos, sin = self.centre, math.cos(turn), math.sin(turn)
        return tuple(
            (cx + self.radius * (x * cos - y * sin), cy + self.radius * (x * sin + y * cos))
            for x, y in _unit_outline(self.kind)
        )

    @property
    def box(self) -> Box:
        """``(x0, y0, x1, y1)``: the shape's exact bounds in the picture's pixels."""
        xs, ys = zip(*self.outline, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def whole_box(self) -> Box:
        """The shape's bounds together with its number's."""
        x0, y0, x1, y1 = self.box
        if self.number_box is None:
            return self.box
        left, top, right, bottom = self.number_box
        return min(x0, left), min(y0, top), max(x1, right), max(y1, bottom)

    @property
    def category(self) -> tuple[str, str]:
        """``(colour, kind)``: what existence questions ask about."""
        return self.colour, self.kind


@dataclass(frozen=True)
class Scene:
    """Everything that is in one picture; ``seed`` draws the same scene again."""

    seed: tuple[int, ...]
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    backdrop: str
    tones: tuple[tuple[int, int, int], tuple[int, int, int]]

    @property
    def side(self) -> int:
        """Side of the central square in pixels."""
        return min(self.width, self.height)

    def place(self, thing: SceneObject) -> tuple[float, float]:
        """Where an object's centre stands in the central square, of 1: from left, from top."""
        x, y = thing.centre
        return self.in_square((x, y, x, y))[:2]

    def in_square(self, box: Box) -> Box:
        """Give a box of the picture's pixels as shares of the central square."""
        left, top = (self.width - self.side) / 2, (self.height - self.side) / 2
        x0, y0, x1, y1 = box
        return (
            (x0 - left) / self.side,
            (y0 - top) / self.side,
            (x1 - left) / self.side,
            (y1 - top) / self.side,
        )


def draw_categories(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw the ``(colour, kind)`` of every object of a scene."""
    colours = tuple(COLOURS)
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        colour = colours[rng.choice(len(colours), p=_COLOUR_WEIGHTS / _COLOUR_WEIGHTS.sum())]
        kind = KINDS[rng.choice(len(KINDS), p=_KIND_WEIGHTS / _KIND_WEIGHTS.sum())]
        if drawn and rng.random() < _LIKENESS:
            like = drawn[int(rng.integers(len(drawn)))]
            colour, kind = (like[0], kind) if rng.random() < 0.5 else (colour, like[1])
        if drawn.count((colour, kind)) < 2:
            drawn.append((colour, kind))
    return drawn


@functools.lru_cache(maxsize=1)
def category_statistics() -> tuple[Counter[tuple[str, str]], Counter[frozenset[tuple[str, str]]]]:
    """Count how often categories occur and co-occur, over 4,000 scenes of a fixed seed.

    Returns the number of scenes that hold a category, and that hold both of an unordered pair.
    POPE's "popular" and "adversarial" splits (Li et al. 2023) are built from the same two counts.
    """
    rng = np.random.default_rng(20240606)
    single: Counter[tuple[str, str]] = Counter()
    pairs: Counter[frozenset[tuple[str, str]]] = Counter()
    for _ in range(4000):
        present = sorted(set(draw_categories(rng)))
        single.update(present)
        pairs.update(frozenset(pair) for pair in combinations(present, 2))
    return single, pairs


def draw_scene(seed: tuple[int, ...]) -> Scene:
    """Draw a scene: the same ``seed`` (integers of at least 0) always gives the same scene."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    side = int(rng.integers(180, 281))
    long = round(side * rng.uniform(1.0, 1.5))
    width, height = (long, side) if rng.random() < 0.6 else (side, long)
    categories = draw_categories(rng)
    numbered = set(rng.permutation(len(categories))[: int(rng.integers(1, 4))].tolist())
    numbers = rng.permutation(np.arange(10, 100))[: len(categories)]
    while True:
        placed = _place(rng, len(categories), numbered)
        if placed is not None:
            break
    left, top = (width - side) / 2, (height - side) / 2
    objects = []
    for index, (colour, kind) in enumerate(categories):
        size, (x, y, radius), tag, inside = placed[index]
        objects.append(
            SceneObject(
                kind=kind,
                colour=colour,
                size=size,
                centre=(x * side + left, y * side + top),
                radius=radius * side,
                number=int(numbers[index]) if tag else None,
                number_box=_to_pixels(tag, side, left, top) if tag else None,
                inside=inside,
                angle=float(rng.uniform(-9, 9)),
                shade=tuple(int(v) for v in rng.integers(-14, 15, 3)),  # type: ignore[arg-type]
            )
        )
    backdrop = str(rng.choice(["plain", "gradient", "stripes", "dots", "checks"]))
    base = rng.integers(205, 250, 3)
    second = np.clip(base + rng.integers(-22, 23, 3), 190, 255)
    tones = (tuple(int(v) for v in base), tuple(int(v) for v in second))
    return Scene(seed, width, height, tuple(objects), backdrop, tones)  # type: ignore[arg-type]


def _to_pixels(box: Box, side: int, left: float, top: float) -> Box:
    x0, y0, x1, y1 = box
    return x0 * side + left, y0 * side + top, x1 * side + left, y1 * side + top


def _place(rng: np.random.Generator, count: int, numbered: set[int]) -> list[_Placed] | None:
    """Shapes and tags in the unit square without overlap, or None if stuck."""
    taken: list[tuple[Box, float]] = []
    placed: list[_Placed] = []
    for index in range(count):
        size = SIZES[int(rng.integers(2))]
        radius = float(rng.uniform(*_RADII[size]))
        inside = size == "big"
        for _ in range(60):
            x, y = rng.uniform(_MARGIN + radius, 1 - _MARGIN - radius, 2)
            body = (x - radius, y - radius, x + radius, y + radius)
            tag = None
            if index in numbered:
                tag = _tag_box(x, y, radius, inside, right=bool(rng.random() < 0.5))
            space = body if tag is None else _union(body, tag)
            if min(space[:2]) < _MARGIN or max(space[2:]) > 1 - _MARGIN:
                continue
            apart = _APART if tag is None or inside else _TAG_APART
            if any(_closer(space, other, max(apart, gap)) for other, gap in taken):
                continue
            taken.append((space, apart))
            placed.append((size, (float(x), float(y), radius), tag, inside))
            break
        else:
            return None
    return placed


def _tag_box(x: float, y: float, radius: float, inside: bool, right: bool) -> Box:
    width, height = _TAG
    if not inside:
        if right:
            x += radius + _GAP + width / 2
        else:
            y += radius + _GAP + height / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _union(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _closer(a: Box, b: Box, gap: float) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def render(scene: Scene) -> Image.Image:
    """Paint a scene: an RGB picture of ``scene.width`` x ``scene.height`` pixels."""
    scale = 2  # drawn at twice the size and averaged: smooth edges
    image = _backdrop(scene)
    image = image.resize((scene.width * scale, scene.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for thing in scene.objects:
        _draw_shape(draw, thing, scale)
        if thing.number is not None:
            _draw_number(draw, thing, scene.side, scale)
    image = image.reduce(scale)
    rng = np.random.default_rng(np.random.SeedSequence((*scene.seed, 1)))
    grain = rng.integers(-5, 6, (scene.height, scene.width, 1), dtype=np.int8)
    pixels = np.asarray(image, dtype=np.int16) + grain
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _backdrop(scene: Scene) -> Image.Image:
    y, x = np.ogrid[0 : scene.height, 0 : scene.width]
    step = scene.side // 9
    tones = np.array(scene.tones)
    if scene.backdrop == "gradient":
        blend = y / scene.height
        pixels = (tones[0] + (tones[1] - tones[0]) * blend[..., None]).round().astype(np.uint8)
    else:
        if scene.backdrop == "stripes":
            second = (y // step) % 2
        elif scene.backdrop == "checks":
            second = (x // step + y // step) % 2
        elif scene.backdrop == "dots":
            distance = (x % step - step / 2) ** 2 + (y % step - step / 2) ** 2
            second = (distance < (step / 5) ** 2).astype(np.intp)
        else:
            second = np.zeros((1, 1), dtype=np.intp)
        pixels = tones.astype(np.uint8)[second]
    return Image.fromarray(np.broadcast_to(pixels, (scene.height, scene.width, 3)))


def _draw_shape(draw: ImageDraw.ImageDraw, thing: SceneObject, scale: int) -> None:
    base = COLOURS[thing.colour]
    fill = tuple(min(255, max(0, c + s)) for c, s in zip(base, thing.shade, strict=True))
    corners = [(x * scale, y * scale) for x, y in thing.outline]
    if thing.kind in ("circle", "ring"):
        bounds = [value * scale for value in thing.box]
        if thing.kind == "circle":
            draw.ellipse(bounds, fill=fill)
        else:
            draw.ellipse(bounds, outline=fill, width=round(thing.radius * scale * 0.34))
    else:
        draw.polygon(corners, fill=fill)


@functools.cache
def _unit_outline(kind: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape inside the unit circle's square, y pointing down."""
    if kind in ("circle", "ring"):
        return ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))
    if kind == "square":
        return ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
    if kind == "diamond":
        return ((0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0))
    if kind == "triangle":
        return ((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8))
    if kind == "cross":
        a, b = 0.32, 0.95
        return (
            *((-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)),
            *((a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)),
        )
    if kind == "star":
        spokes = (math.pi * k / 5 - math.pi / 2 for k in range(10))
        reach = (1.0 if k % 2 == 0 else 0.45 for k in range(10))
        return tuple((r * math.cos(a), r * math.sin(a)) for a, r in zip(spokes, reach, strict=True))
    if kind == "heart":
        turns = (2 * math.pi * k / 40 for k in range(40))
        return tuple(
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 17,
            )
            for t in turns
        )
    raise ValueError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # the font that Pillow ships: the same on every machine


def _draw_number(draw: ImageDraw.ImageDraw, thing: SceneObject, side: int, scale: int) -> None:
    assert thing.number_box is not None
    x0, y0, x1, y1 = (value * scale for value in thing.number_box)
    draw.rounded_rectangle((x0, y0, x1, y1), radius=(y1 - y0) * 0.2, fill=(255, 255, 255))
    draw.text(
        ((x0 + x1) / 2, (y0 + y1) / 2),
        str(thing.number),
        font=_font(round(0.128 * side * scale)),
        fill=(10, 10, 14),
        anchor="mm",
        stroke_width=max(1, round(0.0025 * side * scale)),
    )
