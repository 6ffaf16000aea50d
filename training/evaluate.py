"""Accuracy of the bundled models: ``python -m training.evaluate --model NAME``.

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

from vlmflow.lvlm.loading import open_model
from vlmflow.scenes.generator import COLOURS, KINDS
from vlmflow.scenes.questions import EXISTENCE_SUBSETS, REASONING
from vlmflow.scenes.tasks import ALL_TASKS, GROUNDING, Sample, mentions, samples
from vlmflow.statistics.intervals import mean_estimate, wilson_interval
from vlmflow.tasks.metrics.chair import chair
from vlmflow.tasks.scenes import ENOUGH, ScenesTask

MODEL, CAPTION = "scenes-llava", "scenes-caption"
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


def evaluate(
    model: Any, processor: Any, split: str, count: int, tasks: Sequence[str] = ALL_TASKS
) -> list[Row]:
    """Score every task on the first ``count`` samples of a split."""
    rows: list[Row] = []
    console = Console(stderr=True)
    for task in track(tasks, "tasks", console=console, disable=not console.is_terminal):
        drawn = list(samples(task, split, count))
        # With the pictures, and without.
        both = [
            answers(model, processor, prompt_batches(processor, drawn, model, blind=blind))
            for blind in (False, True)
        ]
        rows += _caption_rows(drawn, both) if task == CAPTION else _rows(task, split, drawn, both)
    return rows


def _caption_rows(drawn: Sequence[Sample], both: Sequence[Sequence[str]]) -> Iterator[Row]:
    objects = [item.objects for item in drawn]
    scores = [chair(captions, objects, mentions) for captions in both]
    hits = [(score.hits, score.objects) for score in scores]
    wrong = [(round(score.chair_i * score.mentions), score.mentions) for score in scores]
    for measure, pairs in (("objects named", hits), ("CHAIRi", wrong)):
        with_it, without = (_share(*pair) for pair in pairs)
        yield Row(CAPTION, measure, pairs[0][1], *with_it, *without, None)


def _rows(
    task: str, split: str, drawn: Sequence[Sample], both: Sequence[Sequence[str]]
) -> Iterator[Row]:
    metric, count = ScenesTask(task), len(drawn)
    scored = list(metric.samples(split, count))
    with_it, without = (metric.scores(scored, texts) for texts in both)
    groups = {metric.metric: list(range(count))}
    if task == "scenes-existence":
        for number, subset in enumerate(EXISTENCE_SUBSETS):
            groups[subset] = [i for i in range(count) if i // 2 % 3 == number]
    if task == "scenes-reasoning":
        for number, make in enumerate(REASONING):
            groups[make.__name__] = list(range(number, count, len(REASONING)))
    for measure, chosen in groups.items():
        chances = [_chance(drawn[i]) for i in chosen]
        chance = None if None in chances else sum(filter(None, chances)) / len(chances)
        scores = [_mean([values[i] for i in chosen]) for values in (with_it, without)]
        yield Row(task, measure, len(chosen), *scores[0], *scores[1], chance)
    if task == GROUNDING:
        good = [_share(sum(v >= ENOUGH for v in values), count) for values in (with_it, without)]
        yield Row(task, "accuracy at IoU 0.5", count, *good[0], *good[1], None)


def _chance(drawn: Sample) -> float | None:
    """Share of right answers of a blind guess that knows what kind of answer is wanted."""
    question = drawn.task_question
    if drawn.task == GROUNDING:
        return None
    if question.choices:
        return 1 / len(question.choices)
    if drawn.task == "scenes-existence":
        return 0.5
    if question.answer.isdigit():
        return 1 / 90
    if question.answer in COLOURS:
        return 1 / len(COLOURS)
    return 1 / (len(KINDS) * (1 if question.answer in KINDS else len(COLOURS)))


def _share(good: float, trials: int) -> tuple[float, float, float]:
    return (good / max(trials, 1), *wilson_interval(good, trials))


def _mean(scores: Sequence[float]) -> tuple[float, float, float]:
    estimate = mean_estimate(scores, draws=10_000, seed=0)
    return estimate.value, estimate.low, estimate.high


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
    parser.add_argument("--model", default=MODEL, help="bundled name or model directory")
    parser.add_argument("--split", choices=("calibration", "test"), default="test")
    parser.add_argument("--count", type=int, default=600, help="samples per task")
    parser.add_argument("--tasks", nargs="+", choices=ALL_TASKS, default=ALL_TASKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    model, processor = open_model(arguments.model, device=arguments.device)
    rows = evaluate(model, processor, arguments.split, arguments.count, arguments.tasks)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        title = f"{Path(arguments.model).name}, {arguments.split} split"
        Console(width=120).print(table(rows, title))


if __name__ == "__main__":
    main()
