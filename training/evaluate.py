"""Accuracy of the bundled model: ``python -m training.evaluate``.

Prints, for each task's test split, the score with the picture, the score without it, and chance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmflow.lvlm.loading import BUNDLED
from vlmflow.scenes.questions import EXISTENCE_SUBSETS, REASONING
from vlmflow.scenes.tasks import TASKS, Sample, mentions, samples
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.tasks.metrics.chair import chair

MODEL = BUNDLED / "scenes-llava"
BATCH = 32


@dataclass(frozen=True)
class Row:
    """One line of the table: a score with its 95 % Wilson interval, with and without pictures."""

    task: str
    measure: str
    count: int
    score: float
    low: float
    high: float
    blind: float
    blind_low: float
    blind_high: float
    chance: float | None


def prompt_batches(
    processor: Any, drawn: Sequence[Sample], model: Any, *, size: int = BATCH, blind: bool = False
) -> Iterator[Any]:
    """Encode prompts in order; ``blind`` leaves the pictures and their tokens out of them."""
    picture = [] if blind else [{"type": "image"}]
    for start in range(0, len(drawn), size):
        batch = drawn[start : start + size]
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [*picture, {"type": "text", "text": item.question}]}],
                add_generation_prompt=True,
            )
            for item in batch
        ]
        inputs = processor(
            text=prompts,
            images=None if blind else [item.picture for item in batch],
            padding=True,
            return_tensors="pt",
            add_special_tokens=False,
        ).to(model.device)
        if not blind:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        yield inputs


def answers(
    model: Any, processor: Any, batches: Iterable[Any], max_new_tokens: int = 64
) -> list[str]:
    """Answer prompts greedily, in order."""
    texts: list[str] = []
    for inputs in batches:
        with torch.no_grad():  # not inference mode: rankings of a truncation may use gradients
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answer_ids = ids[:, inputs["input_ids"].shape[1] :]
        texts += processor.batch_decode(answer_ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def evaluate(model: Any, processor: Any, split: str, count: int) -> list[Row]:
    """Score every task on the first ``count`` samples of a split."""
    rows: list[Row] = []
    console = Console(stderr=True)
    for task in track(TASKS, "tasks", console=console, disable=not console.is_terminal):
        drawn = list(samples(task, split, count))
        # With the pictures, and without.
        both = [
            answers(model, processor, prompt_batches(processor, drawn, model, blind=blind))
            for blind in (False, True)
        ]
        if task == "scenes-caption":
            objects = [item.objects for item in drawn]
            scores = [chair(captions, objects, mentions) for captions in both]
            for measure, pick in (("objects named", "hits"), ("CHAIRi", "mentions")):
                trials = [s.objects if pick == "hits" else s.mentions for s in scores]
                good = [s.hits if pick == "hits" else round(s.chair_i * s.mentions) for s in scores]
                rows.append(_row(task, measure, good, trials, None))
            continue
        groups = {"accuracy": list(range(count))}
        if task == "scenes-existence":
            for number, subset in enumerate(EXISTENCE_SUBSETS):
                groups[subset] = [i for i in range(count) if i // 2 % 3 == number]
        if task == "scenes-reasoning":
            for number, make in enumerate(REASONING):
                groups[make.__name__] = list(range(number, count, len(REASONING)))
        for measure, chosen in groups.items():
            good = [sum(drawn[i].accepts(texts[i]) for i in chosen) for texts in both]
            options = [len(drawn[i].task_question.choices) for i in chosen]
            if task == "scenes-reasoning":
                chance = sum(1 / n for n in options) / len(options)
            else:
                chance = 0.5 if task == "scenes-existence" else 1 / 90
            rows.append(_row(task, measure, good, [len(chosen)] * 2, chance))
    return rows


def _row(
    task: str, measure: str, good: Sequence[int], trials: Sequence[int], chance: float | None
) -> Row:
    share = [g / max(n, 1) for g, n in zip(good, trials, strict=True)]
    bounds = [wilson_interval(g, n) for g, n in zip(good, trials, strict=True)]
    return Row(task, measure, trials[0], share[0], *bounds[0], share[1], *bounds[1], chance)


def table(rows: Sequence[Row], title: str) -> Table:
    """Lay the rows out as a rich table, in percent."""
    drawn = Table(title=title)
    for column in ("task", "measure", "n", "with picture", "95 %", "without", "95 %", "chance"):
        drawn.add_column(column, justify="left" if column in ("task", "measure") else "right")
    for row in rows:
        drawn.add_row(
            row.task,
            row.measure,
            str(row.count),
            f"{row.score:.1%}",
            f"{row.low:.1%} .. {row.high:.1%}",
            f"{row.blind:.1%}",
            f"{row.blind_low:.1%} .. {row.blind_high:.1%}",
            "" if row.chance is None else f"{row.chance:.1%}",
        )
    return drawn


def main() -> None:
    """Command line of ``python -m training.evaluate``."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="model directory")
    parser.add_argument("--split", choices=("calibration", "test"), default="test")
    parser.add_argument("--count", type=int, default=600, help="samples per task")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.model).to(arguments.device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    rows = evaluate(model, processor, arguments.split, arguments.count)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        title = f"{arguments.model.name}, {arguments.split} split"
        Console(width=120).print(table(rows, title))


if __name__ == "__main__":
    main()
