"""Training examples: one picture, and as many turns after it as fit into a fixed length.

Most examples hold turns that do not see each other: each attends to what stands before it up to
the picture, and to itself, and its positions go on from there. So every turn is answered from the
picture, as in a first turn, and shares the cost of its image tokens. The other examples are
conversations, in which a turn sees those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from training.pictures import Pictures
from training.turns import KINDS, Mixture, draw_turn, shares_at
from vlmflow.scenes.generator import draw_scene, render
from vlmflow.scenes.tasks import scene_seed

IGNORE = -100
SEED_OFFSET = 1_000_000  # examples of this stage share no scene with those of the vision tower


class Example(TypedDict):
    """One training example; ``N`` positions."""

    picture: dict[str, Tensor]  # What the image processor returns for it
    input_ids: Tensor  # (N,)
    position_ids: Tensor  # (N,), or (axes, N) where the model counts on several
    blocks: Tensor  # (N,): 0 is seen by all later positions, others by their own block only
    labels: Tensor  # (N,): the next token where it belongs to an answer, else IGNORE
    turns: Tensor  # (N,): number of the turn that a label belongs to, else -1
    kinds: Tensor  # (N,): index into KINDS where a label is, else -1


@dataclass(frozen=True)
class Examples(Dataset[Example]):
    """Examples of steps ``start + 1`` to ``steps``; every example is always the same one."""

    processor: Any  # Processor of the model that is trained
    pictures: Pictures  # How that model is shown them
    length: int  # ``N``, the positions of an example
    # Examples of a step, the last step before these, and the last of these
    batch: int
    start: int
    steps: int
    conversations: float  # Share of examples whose turns see those before them
    seed: int  # Seed of everything that is drawn
    mixture: Mixture  # How often each kind of question is asked

    def __len__(self) -> int:
        return (self.steps - self.start) * self.batch

    def __getitem__(self, index: int) -> Example:
        number = self.start * self.batch + index
        scene_number = SEED_OFFSET * (1 + self.seed) + number
        seed = scene_seed("conversation", "train", scene_number)
        scene = draw_scene(seed)
        rng = np.random.default_rng(np.random.SeedSequence((*seed, 2)))
        shares = shares_at(number // self.batch + 1, self.mixture)
        shown = self.pictures.show(render(scene), rng)
        tokenizer = self.processor.tokenizer
        encode = tokenizer.encode
        lead, tail = self._around_question(shown.text)
        ids = torch.tensor(encode(lead, add_special_tokens=False))
        image_token_id = tokenizer.convert_tokens_to_ids(self.processor.image_token)
        positions = self.pictures.positions(ids == image_token_id, shown)
        example = Example(
            picture=shown.inputs,
            input_ids=torch.full((self.length,), tokenizer.pad_token_id),
            position_ids=positions.new_zeros(*positions.shape[:-1], self.length),
            blocks=torch.full((self.length,), -1),
            labels=torch.full((self.length,), IGNORE),
            turns=torch.full((self.length,), -1),
            kinds=torch.full((self.length,), -1),
        )
        prefix = end = len(ids)
        example["input_ids"][:prefix] = ids
        example["position_ids"][..., :prefix] = positions
        example["blocks"][:prefix] = 0
        conversation = bool(rng.random() < self.conversations)
        texts: set[str] = set()
        turn = 0
        while True:
            kind, question = draw_turn(scene, rng, shares)
            if question.text in texts:
                continue
            texts.add(question.text)
            opening = "\n<|im_start|>user\n" if conversation and turn else "\n"
            ask = encode(opening + question.text + tail, add_special_tokens=False)
            answer = encode(question.answer + "<|im_end|>", add_special_tokens=False)
            start, end = end, end + len(ask) + len(answer)
            if end > self.length:
                return example
            # Image tokens may share positions: text goes on from the last of these.
            first = (start if conversation else prefix) + int(positions.max()) + 1 - prefix
            labelled = slice(start + len(ask) - 1, end - 1)
            example["input_ids"][start:end] = torch.tensor(ask + answer)
            example["position_ids"][..., start:end] = torch.arange(first, first + end - start)
            example["blocks"][start:end] = 0 if conversation else turn + 1
            example["labels"][labelled] = torch.tensor(answer)
            example["turns"][labelled] = turn
            example["kinds"][labelled] = KINDS.index(kind)
            turn += 1

    def _around_question(self, image_text: str) -> tuple[str, str]:
        """Return what the processor writes before and after a first question."""
        content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        lead, tail = prompt.split("\nQUESTION")
        return lead.replace(self.processor.image_token, image_text), tail


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """Stack examples; ``picture`` has their pictures in a row, as the processor has of several."""
    texts = [{k: v for k, v in example.items() if k != "picture"} for example in examples]
    pictures = [example["picture"] for example in examples]
    batch: dict[str, Any] = default_collate(texts)
    batch["picture"] = {key: torch.cat([own[key] for own in pictures]) for key in pictures[0]}
    return batch


def may_look(blocks: Tensor) -> Tensor:
    """Which positions each position attends to: (B, N) blocks -> (B, 1, N, N) bool."""
    length = blocks.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=blocks.device).tril()
    keys, queries = blocks[:, None, :], blocks[:, :, None]
    return (earlier & ((keys == 0) | (keys == queries)))[:, None]
