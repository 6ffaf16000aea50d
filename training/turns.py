"""The questions that a model with a pretrained decoder is trained on, and how often each comes up.

Nothing but the next token of the answers is trained. What a kind of question needs on the way
(places, numbers, lists, the options' own words) is therefore taught as questions whose answers say
it. :data:`MIXTURE` says how often each kind is asked at which step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from vlmflow.scenes.generator import Scene, SceneObject
from vlmflow.scenes.questions import (
    REASONING,
    Maker,
    Question,
    attribute,
    caption,
    description,
    detail,
    existence,
    grounding,
    name,
    named,
    place,
    plural,
    presence,
    reading,
    side,
    unique_objects,
)


def _point(scene: Scene, thing: SceneObject) -> str:
    """Write where an object's centre stands in the central square: ``"(23,41)"`` of 100."""
    x, y = (round(100 * value) for value in scene.place(thing))
    return f"({x},{y})"


def point(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask where an object's centre stands, in hundredths of the picture."""
    things = unique_objects(scene)
    if not things:
        return None
    thing = things[int(rng.integers(len(things)))]
    return Question("point", f"Where is the {name(thing)}? Say x and y.", _point(scene, thing))


def at_point(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask what stands at a place."""
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    return Question("at_point", f"What is at {_point(scene, thing)}?", f"{description(thing)}.")


def numbers(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for every printed number, from top to bottom."""
    del rng
    things = sorted(scene.objects, key=lambda thing: thing.centre[1])
    listed = [f"{thing.number} {name(thing)}" for thing in things if thing.number is not None]
    return Question("numbers", "Which numbers are in the picture?", ", ".join(listed) + ".")


def places(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for every object and its place, from top to bottom."""
    del rng
    things = sorted(scene.objects, key=lambda thing: thing.centre[1])
    listed = ", ".join(f"{name(thing)} {_point(scene, thing)}" for thing in things)
    return Question("places", "Where is every object?", f"{listed}.")


def _group(scene: Scene, rng: np.random.Generator) -> tuple[str, list[SceneObject]]:
    """Draw the objects of one kind or colour, and what they are called."""
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    if rng.random() < 0.5:
        return plural(thing.kind), [t for t in scene.objects if t.kind == thing.kind]
    return f"{thing.colour} objects", [t for t in scene.objects if t.colour == thing.colour]


def tally(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the members of a group, then their number."""
    group, members = _group(scene, rng)
    members = sorted(members, key=lambda thing: thing.centre[1])
    listed = ", ".join(map(name, members))
    return Question("tally", f"Name the {group} and count them.", f"{listed}: {len(members)}.")


def groups(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the number of each kind or of each colour."""
    by_kind = rng.random() < 0.5
    counted = Counter(t.kind if by_kind else t.colour for t in scene.objects)
    listed = ", ".join(f"{group} {number}" for group, number in sorted(counted.items()))
    return Question("groups", f"Count the {'shapes' if by_kind else 'colours'}.", f"{listed}.")


def size(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask how big a named object is."""
    things = unique_objects(scene)
    if not things:
        return None
    thing = things[int(rng.integers(len(things)))]
    return Question("size", f"How big is the {name(thing)}?", thing.size)


def _named_in(scene: Scene, text: str) -> list[SceneObject]:
    """Find the objects of a scene that a text names, in its order."""
    starts = [(text.find(name(thing)), thing) for thing in unique_objects(scene)]
    return [thing for start, thing in sorted(starts, key=lambda pair: pair[0]) if start >= 0]


def _steps(scene: Scene, question: Question) -> str:
    """Say what a reasoning question's answer follows from."""
    stem = question.stem
    if question.kind in ("relation", "side"):
        return ", ".join(f"{name(t)} {_point(scene, t)}" for t in _named_in(scene, stem))
    if question.kind == "extreme":
        things = _named_in(scene, "; ".join(question.choices))
        return ", ".join(f"{name(thing)} {_point(scene, thing)}" for thing in things)
    if question.kind == "bigger":
        things = _named_in(scene, "; ".join(question.choices))
        return ", ".join(f"{name(thing)} {thing.size}" for thing in things)
    kinds = Counter(plural(thing.kind) for thing in scene.objects)
    colours = Counter(f"{thing.colour} objects" for thing in scene.objects)
    counted = {group: number for group, number in {**kinds, **colours}.items() if group in stem}
    return ", ".join(f"{group} {counted[group]}" for group in sorted(counted, key=stem.find))


def _spoken(make: Maker) -> Maker:
    """Ask a reasoning question without options, to be answered in words."""

    def make_variant(scene: Scene, rng: np.random.Generator) -> Question | None:
        question = make(scene, rng)
        if question is None or question.content is None:
            return question
        kind = f"{question.kind}_spoken"
        text, answer = question.stem, question.content
        return replace(question, kind=kind, text=text, answer=answer, choices=())

    return make_variant


def _stepwise(make: Maker, *, letter: bool) -> Maker:
    """Ask a reasoning question whose answer says first what it follows from."""

    def make_variant(scene: Scene, rng: np.random.Generator) -> Question | None:
        question = make(scene, rng)
        if question is None:
            return None
        steps = _steps(scene, question)
        if question.content is None:  # "side" has no options
            text, answer = f"{question.text} Think first.", f"{steps}: {question.answer}."
        elif letter:
            text = question.text.replace("Answer with the letter.", "Think, then give the letter.")
            answer = f"{steps}: {question.content}: {question.answer}"
        else:
            text, answer = f"{question.stem} Think first.", f"{steps}: {question.content}."
        return replace(question, kind=f"{question.kind}_steps", text=text, answer=answer)

    return make_variant


def _content_and_letter(make: Maker) -> Maker:
    """Ask a reasoning question to be answered with the right option's words and its letter."""

    def make_variant(scene: Scene, rng: np.random.Generator) -> Question | None:
        question = make(scene, rng)
        if question is None or question.content is None:
            return None
        text = question.text.replace("Answer with the letter.", "Answer with words and letter.")
        answer = f"{question.content}: {question.answer}"
        return replace(question, kind=f"{question.kind}_words", text=text, answer=answer)

    return make_variant


def _content_before_letter(make: Maker) -> Maker:
    """Ask a reasoning question as the task does, to be answered with words before the letter."""

    def make_variant(scene: Scene, rng: np.random.Generator) -> Question | None:
        question = make(scene, rng)
        if question is None or question.content is None:
            return None
        answer = f"{question.content}: {question.answer}"
        return replace(question, kind=f"{question.kind}_lettered", answer=answer)

    return make_variant


_REASONING = {make.__name__: make for make in REASONING}
_LETTERED: dict[str, Maker] = {**_REASONING, "presence": presence}
_OPEN = ("relation", "count", "compare", "extreme")  # "bigger" asks nothing without its options

MAKERS: dict[str, Maker] = {
    "caption": lambda scene, _rng: caption(scene),
    "existence": existence,
    "doubt": lambda scene, rng: existence(scene, rng, subset="adversarial"),
    "attribute": attribute,
    "reading": reading,
    "detail": detail,
    "place": place,
    "side": side,
    "point": point,
    "at_point": at_point,
    "numbers": numbers,
    "places": places,
    "tally": tally,
    "groups": groups,
    "size": size,
    "grounding": grounding,
    "presence": presence,
    "named": named,
    "side_steps": _stepwise(side, letter=False),
    **{f"{kind}_spoken": _spoken(_REASONING[kind]) for kind in _OPEN},
    **{f"{kind}_steps": _stepwise(_REASONING[kind], letter=False) for kind in _OPEN},
    **{f"{kind}_letter_steps": _stepwise(make, letter=True) for kind, make in _REASONING.items()},
    **{f"{kind}_words": _content_and_letter(make) for kind, make in _REASONING.items()},
    **_REASONING,
    **{f"{kind}_lettered": _content_before_letter(make) for kind, make in _LETTERED.items()},
}

KINDS = tuple(MAKERS)

Mixture = dict[int, dict[str, float]]
"""Training steps, and the share of every kind of question at each."""

_SPOKEN = {f"{kind}_spoken": 1.0 for kind in _OPEN}
_STEPS = {f"{kind}_steps": 1.0 for kind in _OPEN}
_LETTER_STEPS = {f"{kind}_letter_steps": 1.0 for kind in _REASONING}
_WORDS = {f"{kind}_words": 1.0 for kind in _REASONING}
_LETTERS = dict.fromkeys(_REASONING, 1.0)
_WORDS_AND_LETTERS = {f"{kind}_lettered": 1.0 for kind in _REASONING} | {"presence_lettered": 0.3}


def _parts(*groups_of: tuple[float, dict[str, float]]) -> dict[str, float]:
    """Weigh groups of kinds: every kind's share of all turns."""
    shares: dict[str, float] = {}
    for weight, group in groups_of:
        for kind, part in group.items():
            shares[kind] = shares.get(kind, 0.0) + weight * part / sum(group.values())
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


_NAMING = {
    "caption": 1.0,
    "existence": 1.2,
    "doubt": 0.6,
    "attribute": 1.5,
    "detail": 1.5,
    "numbers": 1.0,
    "reading": 1.5,
    "at_point": 1.0,
}
_PLACING = {
    "point": 1.5,
    "place": 1.0,
    "places": 0.6,
    "grounding": 1.0,
    "side": 1.2,
    "side_steps": 0.8,
}
_COUNTING = {"tally": 1.0, "groups": 0.5, "size": 0.5, "presence": 0.5, "named": 0.5}

_COUNTS = {"tally": 1.2, "groups": 0.5, "size": 0.4}
_PLACING_IN_WORDS = {"point": 0.7, "place": 0.5, "side": 0.5, "grounding": 1.5}

#: Shares of the kinds at some steps; straight lines between them, the last ones from there on.
#: First what things are and where they are; then what follows from that. Up to step 1,500 it was
#: said by way of coordinates and asked for as letters alone: neither rose above chance, while the
#: right option's words did. From then on the letter follows the words.
MIXTURE: Mixture = {
    0: _parts((0.75, _NAMING), (0.2, _PLACING), (0.05, _COUNTING)),
    400: _parts((0.45, _NAMING), (0.3, _PLACING), (0.15, _COUNTING), (0.1, _SPOKEN)),
    1200: _parts(
        *((0.3, _NAMING), (0.2, _PLACING), (0.15, _COUNTING), (0.12, _SPOKEN), (0.1, _STEPS)),
        *((0.06, _LETTER_STEPS), (0.03, _WORDS), (0.04, _LETTERS)),
    ),
    1500: _parts(
        *((0.295, _NAMING), (0.18, _PLACING), (0.1375, _COUNTING), (0.12, _SPOKEN)),
        *((0.095, _STEPS), (0.06, _LETTER_STEPS), (0.045, _WORDS), (0.0675, _LETTERS)),
    ),
    1501: _parts(
        *((0.28, _NAMING), (0.13, _PLACING_IN_WORDS), (0.13, _COUNTS), (0.13, _SPOKEN)),
        (0.33, _WORDS_AND_LETTERS),
    ),
}


#: The same for models trained later: letters follow words from their first question on.
WORDS_FIRST: Mixture = {
    0: _parts((0.8, _NAMING), (0.12, _PLACING_IN_WORDS), (0.08, _COUNTS)),
    250: _parts(
        *((0.5, _NAMING), (0.14, _PLACING_IN_WORDS), (0.14, _COUNTS), (0.12, _SPOKEN)),
        (0.1, _WORDS_AND_LETTERS),
    ),
    600: _parts(
        *((0.28, _NAMING), (0.13, _PLACING_IN_WORDS), (0.13, _COUNTS), (0.13, _SPOKEN)),
        (0.33, _WORDS_AND_LETTERS),
    ),
}


def shares_at(step: int, mixture: Mixture) -> dict[str, float]:
    """Interpolate a mixture: the share of every kind of question at a training step."""
    steps = list(mixture)
    return {
        kind: float(np.interp(step, steps, [mixture[at].get(kind, 0.0) for at in steps]))
        for kind in KINDS
    }


def draw_turn(
    scene: Scene, rng: np.random.Generator, shares: dict[str, float]
) -> tuple[str, Question]:
    """Draw a kind and a question of it that this scene offers."""
    kinds = list(shares)
    weights = np.array([shares[kind] for kind in kinds])
    weights /= weights.sum()
    while True:
        kind = kinds[int(rng.choice(len(kinds), p=weights))]
        question = MAKERS[kind](scene, rng)
        if question is not None:
            return kind, question
