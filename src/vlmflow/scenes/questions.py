"""Questions about a scene and their only right answers.

Each maker takes a scene and a random generator and returns a :class:`Question`, or ``None`` where
the scene offers no unambiguous question of that kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlmflow.scenes.generator import COLOURS, KINDS, Box, Scene, SceneObject, category_statistics

LETTERS = "ABCD"
EXISTENCE_SUBSETS = ("random", "popular", "adversarial")
CAPTION_QUESTION = "Name every object in the picture."


@dataclass(frozen=True)
class Question:
    """A question about a scene."""

    kind: str  # What is asked: ``"relation"``, ``"count"``, ``"existence"``, ...
    # Question as it is put to the model, and the right answer
    text: str
    answer: str
    # The options of a multiple-choice question, in the order of their letters
    choices: tuple[str, ...] = ()
    content: str | None = None  # The same answer in words, for a multiple-choice question
    # Where the answer is to be found, in the picture's pixels: set when exactly one object is asked
    # about
    box: Box | None = None
    subset: str | None = None  # POPE's split of an existence question

    @property
    def stem(self) -> str:
        """The text without options."""
        return self.text.split("\n", 1)[0]


Maker = Callable[[Scene, np.random.Generator], "Question | None"]


def name(thing: SceneObject) -> str:
    """Name an object: ``"red star"``."""
    return f"{thing.colour} {thing.kind}"


def with_article(phrase: str) -> str:
    """Put the article in front: ``"a red star"``, ``"an orange star"``."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(kind: str) -> str:
    """Name several of a kind: ``"crosses"``, ``"stars"``."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def unique_objects(scene: Scene) -> list[SceneObject]:
    """Objects whose colour and kind together name them alone."""
    counts = Counter(thing.category for thing in scene.objects)
    return [thing for thing in scene.objects if counts[thing.category] == 1]


def _pick(rng: np.random.Generator, items: list[SceneObject], count: int) -> list[SceneObject]:
    return [items[int(i)] for i in rng.permutation(len(items))[:count]]


def multiple_choice(
    rng: np.random.Generator, kind: str, stem: str, answer: str, others: list[str]
) -> Question:
    """Letter the options in random order, so that every letter is right equally often."""
    options = [answer, *others]
    order = rng.permutation(len(options))
    choices = tuple(options[int(i)] for i in order)
    lines = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices)]
    text = "\n".join([stem, *lines, "Answer with the letter."])
    return Question(kind, text, LETTERS[choices.index(answer)], choices, content=answer)


def relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask where one object lies, seen from another (only clear-cut directions)."""
    # The answer is drawn first: otherwise the scene's own statistics would make one more likely.
    directions = ["to the left", "to the right", "above", "below"]
    answer = directions.pop(int(rng.integers(4)))
    things = unique_objects(scene)
    pairs = []
    for a in things:
        for b in things:
            dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
            ahead, aside = {
                "to the left": (-dx, dy),
                "to the right": (dx, dy),
                "above": (-dy, dx),
                "below": (dy, dx),
            }[answer]
            if a is not b and ahead > max(0.2 * scene.side, 1.6 * abs(aside)):
                pairs.append((a, b))
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    stem = f"Where is the {name(a)}, seen from the {name(b)}?"
    return multiple_choice(rng, "relation", stem, answer, directions)


def count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask how many objects share a kind or a colour (one to four)."""
    by_answer: dict[int, list[str]] = {}
    kinds = Counter(thing.kind for thing in scene.objects)
    colours = Counter(thing.colour for thing in scene.objects)
    for kind, number in kinds.items():
        by_answer.setdefault(number, []).append(plural(kind))
    for colour, number in colours.items():
        by_answer.setdefault(number, []).append(f"{colour} objects")
    number = int(rng.integers(1, 5))  # first, or "1" would be right most of the time
    if number not in by_answer:
        return None
    phrase = by_answer[number][int(rng.integers(len(by_answer[number])))]
    others = [str(other) for other in range(1, 5) if other != number]
    return multiple_choice(rng, "count", f"How many {phrase} are there?", str(number), others)


def compare(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask which of two groups has more members."""
    if rng.random() < 0.5:
        groups = {plural(k): n for k, n in Counter(t.kind for t in scene.objects).items()}
    else:
        groups = {f"{c} objects": n for c, n in Counter(t.colour for t in scene.objects).items()}
    names = sorted(groups)
    more = [(a, b) for a in names for b in names if groups[a] > groups[b]]
    same = [(a, b) for a in names for b in names if a != b and groups[a] == groups[b]]
    outcome = str(rng.choice(["first", "second", "same"]))
    pairs = same if outcome == "same" else more
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    if outcome == "second":
        a, b = b, a
    options = {"first": f"more {a}", "second": f"more {b}", "same": "the same number"}
    others = [text for key, text in options.items() if key != outcome]
    stem = f"Are there more {a} or more {b}?"
    return multiple_choice(rng, "compare", stem, options[outcome], others)


def extreme(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask which object is the furthest to one side (with a clear lead)."""
    things = unique_objects(scene)
    side = str(rng.choice(["left", "right", "top", "bottom"]))
    axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
    ranked = sorted(scene.objects, key=lambda thing: sign * thing.centre[axis])
    lead = abs(ranked[0].centre[axis] - ranked[1].centre[axis])
    others = [thing for thing in things if thing is not ranked[0]]
    if ranked[0] not in things or len(others) < 2 or lead < 0.08 * scene.side:
        return None
    wrong = [name(thing) for thing in _pick(rng, others, 3)]
    where = {"top": "the highest", "bottom": "the lowest"}.get(side, f"the furthest to the {side}")
    return multiple_choice(
        rng, "extreme", f"Which object is {where}?", f"the {name(ranked[0])}",
        [f"the {other}" for other in wrong],
    )  # fmt: skip


def bigger(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask which object is of another size than its rivals."""
    size, rival = ("big", "small") if rng.random() < 0.5 else ("small", "big")
    things = unique_objects(scene)
    fitting = [thing for thing in things if thing.size == size]
    rivals = [thing for thing in things if thing.size == rival]
    if not fitting or not rivals:
        return None
    answer = f"the {name(_pick(rng, fitting, 1)[0])}"
    wrong = [f"the {name(thing)}" for thing in _pick(rng, rivals, 3)]
    return multiple_choice(rng, "bigger", f"Which of these is {size}?", answer, wrong)


def existence(
    scene: Scene,
    rng: np.random.Generator,
    *,
    present: bool | None = None,
    subset: str | None = None,
) -> Question:
    """Ask whether a coloured shape is in the picture (POPE, Li et al. 2023).

    ``present`` fixes the answer. ``subset`` fixes where absent objects come from: ``"random"``,
    ``"popular"`` (the most frequent ones) or ``"adversarial"`` (those that most often co-occur
    with what is in the picture).
    """
    categories = sorted({thing.category for thing in scene.objects})
    present = bool(rng.random() < 0.5) if present is None else present
    subset = str(rng.choice(EXISTENCE_SUBSETS)) if subset is None else subset
    if present:
        category = categories[int(rng.integers(len(categories)))]
    else:
        absent = sorted({(c, k) for c in COLOURS for k in KINDS} - set(categories))
        single, pairs = category_statistics()
        if subset == "popular":
            absent = sorted(absent, key=lambda c: (-single[c], c))[:10]
        elif subset == "adversarial":
            together = {
                c: sum(pairs[frozenset((c, h))] / single[h] for h in categories) for c in absent
            }
            absent = sorted(absent, key=lambda c: (-together[c], c))[:5]
        category = absent[int(rng.integers(len(absent)))]
    text = f"Is there {with_article(' '.join(category))} in the picture?"
    boxes = [thing.box for thing in scene.objects if thing.category == category]
    box = boxes[0] if len(boxes) == 1 else None
    return Question("existence", text, "yes" if present else "no", box=box, subset=subset)


def reading(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask what number is printed in or next to an object."""
    things = [thing for thing in unique_objects(scene) if thing.number is not None]
    if not things:
        return None
    thing = _pick(rng, things, 1)[0]
    where = "in" if thing.inside else "next to"
    text = f"What number is {where} the {name(thing)}?"
    return Question("reading", text, str(thing.number), box=thing.whole_box)


def attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for the colour, kind or size of the one object that fits a description."""
    kinds = Counter(thing.kind for thing in scene.objects)
    colours = Counter(thing.colour for thing in scene.objects)
    questions = []
    for thing in scene.objects:
        if kinds[thing.kind] == 1:
            questions.append((f"What colour is the {thing.kind}?", thing.colour, thing))
            questions.append((f"How big is the {thing.kind}?", thing.size, thing))
        if colours[thing.colour] == 1:
            text = f"What shape is the {thing.colour} object?"
            questions.append((text, thing.kind, thing))
    for thing in scene.objects:
        if thing.number is not None:
            text = f"Which object has the number {thing.number}?"
            questions.append((text, f"the {name(thing)}", thing))
    if not questions:
        return None
    text, answer, thing = questions[int(rng.integers(len(questions)))]
    return Question("attribute", text, answer, box=thing.box)


def caption(scene: Scene) -> Question:
    """Name every object, from top to bottom."""
    ordered = sorted(scene.objects, key=lambda thing: thing.centre[1])
    phrases = [with_article(name(thing)) for thing in ordered]
    text = ", ".join(phrases[:-1]) + " and " + phrases[-1] + "."
    return Question("caption", CAPTION_QUESTION, text)


def description(thing: SceneObject) -> str:
    """Say everything about an object: ``"a big red star with 47"``."""
    number = "" if thing.number is None else f" with {thing.number}"
    return f"a {thing.size} {name(thing)}{number}"


def detail(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for everything about the one object of a kind or colour (only for training)."""
    kinds = Counter(thing.kind for thing in scene.objects)
    colours = Counter(thing.colour for thing in scene.objects)
    things = [(thing.kind, thing) for thing in scene.objects if kinds[thing.kind] == 1]
    things += [(f"{t.colour} object", t) for t in scene.objects if colours[t.colour] == 1]
    if not things:
        return None
    phrase, thing = things[int(rng.integers(len(things)))]
    answer = f"{description(thing)}."
    return Question("detail", f"Describe the {phrase}.", answer, box=thing.box)


def place(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask in which quarter of the picture an object stands (only for training)."""
    things = []
    for thing in unique_objects(scene):
        dx, dy = thing.centre[0] - scene.width / 2, thing.centre[1] - scene.height / 2
        if min(abs(dx), abs(dy)) > 0.06 * scene.side:
            things.append((thing, dx, dy))
    if not things:
        return None
    thing, dx, dy = things[int(rng.integers(len(things)))]
    answer = f"{'above' if dy < 0 else 'below'} to the {'left' if dx < 0 else 'right'}"
    return Question("place", f"Where is the {name(thing)}?", answer, box=thing.box)


def side(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask on which side of another an object lies, along one axis (only for training)."""
    axis = int(rng.integers(2))
    sides = (("left", "right"), ("above", "below"))[axis]
    things = unique_objects(scene)
    pairs = [
        (a, b)
        for a in things
        for b in things
        if abs(a.centre[axis] - b.centre[axis]) > 0.08 * scene.side
    ]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    answer = sides[int(a.centre[axis] > b.centre[axis])]
    stem = f"Is the {name(a)} {sides[0]} or {sides[1]}, seen from the {name(b)}?"
    return Question("side", stem, answer)


def presence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask which of four objects is in the picture, by letter (only for training)."""
    categories = sorted({thing.category for thing in scene.objects})
    absent = sorted({(c, k) for c in COLOURS for k in KINDS} - set(categories))
    wrong = [" ".join(absent[int(i)]) for i in rng.permutation(len(absent))[:3]]
    answer = with_article(" ".join(categories[int(rng.integers(len(categories)))]))
    stem = "Which of these is in the picture?"
    return multiple_choice(rng, "presence", stem, answer, [with_article(w) for w in wrong])


def named(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for the letter of an option that is named: reading, not seeing (only for training)."""
    question = REASONING[int(rng.integers(len(REASONING)))](scene, rng)
    if question is None or question.content is None:
        return None
    others = [choice for choice in question.choices if choice != question.content]
    return multiple_choice(
        rng, "named", f"Which of these is {question.content}?", question.content, others
    )


def grounding(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for an object's box in hundredths of the central square: ``"[12,30,25,44]"``.

    In a square picture these are hundredths of the picture.
    """
    things = unique_objects(scene)
    if not things:
        return None
    thing = things[int(rng.integers(len(things)))]
    answer = "[" + ",".join(str(round(100 * edge)) for edge in scene.in_square(thing.box)) + "]"
    text = f"Where is the {name(thing)}? Answer with its box [x0,y0,x1,y1] from 0 to 100."
    return Question("grounding", text, answer, box=thing.box)


REASONING: tuple[Maker, ...] = (relation, count, compare, extreme, bigger)
