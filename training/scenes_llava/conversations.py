"""Training data: one picture, as many question-and-answer turns as fit.

Several turns per picture share the cost of its image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from training.scenes_llava.curriculum import Lesson
from training.scenes_llava.probe_targets import WORDS, probe_targets
from vlmflow.bundled.llava import IMAGE_SIZE, IMAGE_TOKEN, PATCH_SIZE
from vlmflow.scenes.generator import COLOURS, KINDS, SIZES, Scene, draw_scene, render
from vlmflow.scenes.questions import (
    REASONING,
    Maker,
    Question,
    attribute,
    caption,
    count,
    detail,
    existence,
    extreme,
    named,
    place,
    presence,
    reading,
    side,
)
from vlmflow.scenes.tasks import scene_seed

IGNORE = -100
LENGTH = 352  # positions of every sequence: a fixed shape, with no padding to speak of
GRID = IMAGE_SIZE // PATCH_SIZE

CLOSED = ("bigger", "presence", "named")
"""Questions that would not say what is asked without their options."""

# What does not reason, and how often each comes up.
_LOOKING: tuple[tuple[Maker, float], ...] = (
    (existence, 0.4),
    (reading, 0.327),
    (attribute, 0.273),
)
QUESTION_KINDS = (
    *(make.__name__ for make in REASONING),
    *(
        "existence",
        "reading",
        "attribute",
        "caption",
        "detail",
        "place",
        "side",
        "presence",
        "named",
    ),
)

#: Patch labels: name and number of classes (0 is "nothing here"). Column and row are those of the
#: object's centre, so that all patches of an object agree on where it is.
PATCH_LABELS = {
    "kind": len(KINDS) + 1,
    "colour": len(COLOURS) + 1,
    "size": len(SIZES) + 1,
    "tens": 11,
    "units": 11,
    "column": GRID + 1,
    "row": GRID + 1,
}


class Written(TypedDict):
    """The text of one training example, as tensors: IGNORE where there is nothing to say."""

    input_ids: torch.Tensor  # (length,)
    labels: torch.Tensor  # (length,): the next token where it belongs to an answer
    turns: torch.Tensor  # (length,): number of the turn that a label belongs to, else -1
    kinds: torch.Tensor  # (length,): index into QUESTION_KINDS where a label is, else -1
    lengths: torch.Tensor  # (length,): tokens of the answer that a label belongs to, else 0
    verdicts: torch.Tensor  # (length,): see training.scenes_llava.probe_targets
    mentions: torch.Tensor  # (length,)
    spots: torch.Tensor  # (length, 2): -1 where there is nothing to say
    hints: torch.Tensor  # (length, WORDS)


class Conversation(Written):
    """One training example, as tensors."""

    pixel_values: torch.Tensor  # (3, IMAGE_SIZE, IMAGE_SIZE)
    patches: torch.Tensor  # (len(PATCH_LABELS), image tokens)
    centres: torch.Tensor  # (image tokens,): 1 where an object's centre is, else 0


@dataclass(frozen=True)
class Conversations(Dataset[Conversation]):
    """Conversations of the training split; item ``i`` is always the same one."""

    processor: LlavaProcessor
    lesson: Lesson
    count: int
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Conversation:
        seed = scene_seed("conversation", "train", self.first + index)
        scene = draw_scene(seed)
        rng = np.random.default_rng(np.random.SeedSequence((*seed, 2)))
        pixels = self.processor.image_processor(render(scene), return_tensors="pt")
        written = _write(scene, rng, self.lesson, self.processor.tokenizer)
        return {
            **written,
            "pixel_values": pixels["pixel_values"][0],
            "patches": patch_labels(scene),
            "centres": centre_labels(scene),
        }


def _write(
    scene: Scene, rng: np.random.Generator, lesson: Lesson, tokenizer: PreTrainedTokenizerFast
) -> Written:
    """Write turns in the words of the chat template until the sequence is full."""
    eos = tokenizer.eos_token
    image = IMAGE_TOKEN * GRID**2

    def empty(fill: int, *more: int) -> torch.Tensor:
        return torch.full((LENGTH, *more), fill)

    written = Written(
        input_ids=empty(tokenizer.pad_token_id),
        labels=empty(IGNORE),
        turns=empty(-1),
        kinds=empty(-1),
        lengths=empty(0),
        verdicts=empty(IGNORE),
        mentions=empty(IGNORE),
        spots=empty(-1, 2).float(),
        hints=empty(IGNORE, WORDS),
    )
    lead = f"{tokenizer.bos_token}USER: {image}\n"
    texts: set[str] = set()
    start = turn = 0
    while True:
        question = _next_question(scene, rng, lesson, opening=not start)
        if question.text in texts:
            continue
        texts.add(question.text)
        ask = tokenizer.encode(f"{lead} {question.text} ASSISTANT:", add_special_tokens=False)
        reply = tokenizer.encode(f" {question.answer}{eos}", add_special_tokens=False)
        answer, end = start + len(ask), start + len(ask) + len(reply)
        if end > LENGTH:
            return written
        lead = "USER:"
        written["input_ids"][start:end] = torch.tensor(ask + reply)
        predicting = slice(answer - 1, end - 1)
        written["labels"][predicting] = torch.tensor(reply)
        written["turns"][predicting] = turn
        written["kinds"][predicting] = QUESTION_KINDS.index(question.kind)
        written["lengths"][predicting] = len(reply)
        targets = probe_targets(question, ask, scene, tokenizer)
        for at, token in targets.verdicts.items():
            written["verdicts"][start + at] = token
        for at, token in targets.mentions.items():
            written["mentions"][start + at] = token
        for at, spot in targets.spots.items():
            written["spots"][start + at] = torch.tensor(spot)
        for at, tokens in targets.hints.items():
            written["hints"][start + at, : len(tokens)] = torch.tensor(tokens)
        start, turn = end, turn + 1


def _next_question(
    scene: Scene, rng: np.random.Generator, lesson: Lesson, opening: bool
) -> Question:
    if opening and rng.random() < lesson.captions:
        return caption(scene)
    reasoning = [(make, lesson.reasoning / len(REASONING)) for make in REASONING]
    looking = [(make, (1 - lesson.reasoning) * share) for make, share in _LOOKING]
    makers, shares = zip(*reasoning, *looking, strict=True)
    helping: tuple[tuple[Maker, float], ...] = (
        (detail, lesson.details),
        (place, lesson.places),
        (partial(existence, subset="adversarial"), lesson.doubts),
        (side, lesson.axes),
        (presence, lesson.presences),
        (named, lesson.names),
        (count, lesson.counts),
        (extreme, lesson.extremes),
    )
    while True:
        make: Maker = makers[int(rng.choice(len(makers), p=shares))]
        draw = rng.random()
        for helper, share in helping:
            draw -= share
            if draw < 0:
                make = helper
                break
        question = make(scene, rng)
        if question is None:
            continue
        if question.content is not None and rng.random() < lesson.open:
            closed = {*CLOSED, *(() if lesson.comparisons else ("compare",))}
            if question.kind not in closed:
                return replace(question, text=question.stem, answer=question.content, choices=())
        return question


def centre_labels(scene: Scene) -> torch.Tensor:
    """Mark the patch in which each object's centre lies: int64 of shape ``(image tokens,)``."""
    labels = np.zeros((GRID, GRID), dtype=np.int64)
    for thing in scene.objects:
        column, row = (int(place * GRID) for place in scene.place(thing))
        labels[row, column] = 1
    return torch.from_numpy(labels.reshape(-1))


def patch_labels(scene: Scene) -> torch.Tensor:
    """Label what lies under the centre of each patch after resize and centre crop.

    int64 of shape ``(len(PATCH_LABELS), image tokens)``; 0 means nothing.
    """
    left, top = (scene.width - scene.side) / 2, (scene.height - scene.side) / 2
    centres = (np.arange(GRID) + 0.5) / GRID * scene.side
    labels = labels_under(scene, centres[None, :] + left, centres[:, None] + top)
    return torch.from_numpy(labels.reshape(len(PATCH_LABELS), -1))


def labels_under(scene: Scene, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Label what lies at points of a picture, (1, columns) and (rows, 1) of its pixels.

    Of shape ``(len(PATCH_LABELS), rows, columns)``; 0 means nothing.
    """
    labels = np.zeros((len(PATCH_LABELS), y.shape[0], x.shape[1]), dtype=np.int64)
    for thing in scene.objects:
        number = thing.number
        values = (
            KINDS.index(thing.kind) + 1,
            list(COLOURS).index(thing.colour) + 1,
            SIZES.index(thing.size) + 1,
            0 if number is None else number // 10 + 1,
            0 if number is None else number % 10 + 1,
            *(int(place * GRID) + 1 for place in scene.place(thing)),
        )
        for box in filter(None, (thing.box, thing.number_box)):
            inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
            for channel, value in enumerate(values):
                labels[channel][inside] = value
    return labels
