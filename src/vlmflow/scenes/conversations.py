"""Training data: one picture, as many question-and-answer turns as fit.

Several turns per picture share the cost of its image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from vlmflow.scenes.architecture import IMAGE_SIZE, IMAGE_TOKEN, PATCH_SIZE
from vlmflow.scenes.generator import COLOURS, KINDS, SIZES, Scene, draw_scene, render
from vlmflow.scenes.questions import (
    REASONING,
    Maker,
    Question,
    attribute,
    caption,
    description,
    detail,
    existence,
    place,
    reading,
)
from vlmflow.scenes.tasks import scene_seed

IGNORE = -100
GRID = IMAGE_SIZE // PATCH_SIZE


@dataclass(frozen=True)
class Lesson:
    """What conversations are made of for a number of training steps.

    Attributes
    ----------
    steps
        How long the lesson lasts.
    length
        Positions of every sequence: a fixed shape, with no padding to speak of.
    captions, descriptions
        Shares of conversations that open with a caption, or with a full description.
    details
        Share of the other turns that ask for everything about one object.
    places
        Share of those that ask where an object stands.
    doubts
        Share of those that ask for an object that is there, or one that often goes with those.
    open
        Share of reasoning questions asked without options and answered in words.
    comparisons
        Whether comparisons of two groups are among these, too.
    words, labels
        Weights of two auxiliary losses on the projected image tokens: to read an object's words
        off them with the output embedding, and all of its labels with heads of their own.
    digits
        Whether the digits of its number are among these words.
    sides, slope
        Weight of reading its place off them, as "left" or "right" and "above" or "below", and how
        steeply these words follow the place.
    """

    steps: int
    length: int
    captions: float
    descriptions: float = 0.0
    details: float = 0.0
    places: float = 0.0
    doubts: float = 0.0
    open: float = 0.0
    comparisons: bool = False
    words: float = 0.0
    labels: float = 0.0
    digits: bool = False
    sides: float = 0.0
    slope: float = 1.0


# Each draw picks one of these; the four tasks come up about equally often.
_MAKERS: tuple[tuple[Maker, float], ...] = (
    *((make, 0.45 / len(REASONING)) for make in REASONING),
    (existence, 0.22),
    (reading, 0.18),
    (attribute, 0.15),
)
QUESTION_KINDS = (
    *(make.__name__ for make in REASONING),
    *("existence", "reading", "attribute", "caption", "description", "detail", "place"),
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


class Conversation(TypedDict):
    """One training example, as tensors."""

    pixel_values: torch.Tensor  # (3, IMAGE_SIZE, IMAGE_SIZE)
    input_ids: torch.Tensor  # (length,)
    labels: torch.Tensor  # (length,): the next token where it belongs to an answer, else IGNORE
    turns: torch.Tensor  # (length,): number of the turn that a label belongs to, else -1
    kinds: torch.Tensor  # (length,): index into QUESTION_KINDS where a label is, else -1
    lengths: torch.Tensor  # (length,): tokens of the answer that a label belongs to, else 0
    patches: torch.Tensor  # (len(PATCH_LABELS), image tokens)


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
        ids, labels, turns, kinds, lengths = _write(
            scene, rng, self.lesson, self.processor.tokenizer
        )
        return {
            "pixel_values": pixels["pixel_values"][0],
            "input_ids": ids,
            "labels": labels,
            "turns": turns,
            "kinds": kinds,
            "lengths": lengths,
            "patches": patch_labels(scene),
        }


def _write(
    scene: Scene, rng: np.random.Generator, lesson: Lesson, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, ...]:
    """Write turns in the words of the chat template until the sequence is full."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token
    image = IMAGE_TOKEN * GRID**2
    ids: list[int] = []
    answered: list[tuple[int, int, str]] = []
    lead = f"{tokenizer.bos_token}USER: {image}\n"
    asked = set()
    while True:
        question = _next_question(scene, rng, lesson, opening=not ids)
        if question.text in asked:
            continue
        asked.add(question.text)
        ask = tokenizer.encode(f"{lead} {question.text} ASSISTANT:", add_special_tokens=False)
        reply = tokenizer.encode(f" {question.answer}{eos}", add_special_tokens=False)
        if len(ids) + len(ask) + len(reply) > lesson.length:
            break
        lead = "USER:"
        answered.append((len(ids) + len(ask), len(reply), question.kind))
        ids += ask + reply
    filled = torch.full((lesson.length,), pad)
    filled[: len(ids)] = torch.tensor(ids)
    labels, turns, kinds, lengths = (
        torch.full((lesson.length,), fill) for fill in (IGNORE, -1, -1, 0)
    )
    for turn, (start, size, kind) in enumerate(answered):
        predicting = slice(start - 1, start - 1 + size)
        labels[predicting] = filled[start : start + size]
        turns[predicting] = turn
        kinds[predicting] = QUESTION_KINDS.index(kind)
        lengths[predicting] = size
    return filled, labels, turns, kinds, lengths


def _next_question(
    scene: Scene, rng: np.random.Generator, lesson: Lesson, opening: bool
) -> Question:
    if opening:
        draw = rng.random()
        if draw < lesson.captions:
            return caption(scene)
        if draw < lesson.captions + lesson.descriptions:
            return description(scene)
    makers, shares = zip(*_MAKERS, strict=True)
    while True:
        make: Maker = makers[int(rng.choice(len(makers), p=shares))]
        draw = rng.random()
        if draw < lesson.details:
            make = detail
        elif draw < lesson.details + lesson.places:
            make = place
        elif draw < lesson.details + lesson.places + lesson.doubts:
            make = partial(existence, subset="adversarial")
        question = make(scene, rng)
        if question is None:
            continue
        if question.content is not None and rng.random() < lesson.open:
            stem = question.text.split("\n", 1)[0]
            # Without options "bigger" would not say what is asked.
            closed = ("bigger",) if lesson.comparisons else ("bigger", "compare")
            if question.kind not in closed:
                return Question(question.kind, stem, question.content)
        return question


def patch_labels(scene: Scene) -> torch.Tensor:
    """Label what lies under the centre of each patch after resize and centre crop.

    Returns
    -------
    torch.Tensor
        int64 of shape ``(len(PATCH_LABELS), image tokens)``; 0 means nothing.
    """
    left, top = (scene.width - scene.side) / 2, (scene.height - scene.side) / 2
    centres = (np.arange(GRID) + 0.5) / GRID * scene.side
    x, y = centres[None, :] + left, centres[:, None] + top
    labels = np.zeros((len(PATCH_LABELS), GRID, GRID), dtype=np.int64)
    for thing in scene.objects:
        number = thing.number
        values = (
            KINDS.index(thing.kind) + 1,
            list(COLOURS).index(thing.colour) + 1,
            SIZES.index(thing.size) + 1,
            0 if number is None else number // 10 + 1,
            0 if number is None else number % 10 + 1,
            *(
                int((centre - edge) / scene.side * GRID) + 1
                for centre, edge in zip(thing.centre, (left, top), strict=True)
            ),
        )
        for box in filter(None, (thing.box, thing.number_box)):
            inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
            for channel, value in enumerate(values):
                labels[channel][inside] = value
    return torch.from_numpy(labels.reshape(len(PATCH_LABELS), -1))
