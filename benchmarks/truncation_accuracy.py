"""What truncation costs in accuracy: the bundled model on its four tasks.

    python benchmarks/truncation_accuracy.py                   # tables in Markdown
    python benchmarks/truncation_accuracy.py --only uniform    # no other ranking, no layers
    python benchmarks/truncation_accuracy.py --json out.json   # the same figures for machines

First every layer K with keep 0: layer 0 is the run without any image token, the last row the
untouched model. Then every ranking at one small K with a half, a quarter and a tenth of the image
tokens; ``random`` is drawn with three seeds and pooled. The score is the share of right answers
(captions: the share of the pictures' objects that are named), with Wilson's 95 % interval. Samples
are the first of each task's test split; no setting was chosen on them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from training.evaluate import MODEL, answers, prompt_batches
from vlmflow.lvlm.loading import open_model
from vlmflow.lvlm.model_parts import decoder_layers
from vlmflow.scenes.tasks import TASKS, Sample, mentions, samples
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.tasks.metrics.chair import chair
from vlmflow.truncation import Truncation
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.registry import RANKINGS, as_ranking

BATCH = 50
KEEPS = (0.5, 0.25, 0.1)
RANDOM_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Score:
    """One task under one setting."""

    setting: str
    task: str
    right: int
    count: int
    share: float
    low: float
    high: float


def settings(
    layers: int, at: int, only: Sequence[str]
) -> Iterator[tuple[str, list[Truncation | None]]]:
    for layer in range(0 if only else layers):
        yield f"keep 0 at {layer}", [Truncation(layer, 0)]
    yield "untouched", [None]
    for keep in KEEPS:
        for name in only or [name for name in RANKINGS.names() if name != "top_left"]:
            seeds = RANDOM_SEEDS if name == "random" else ()
            rankings = [Random(seed) for seed in seeds] or [as_ranking(name)]
            yield f"{name}, keep {keep:.0%}", [Truncation(at, keep, rank) for rank in rankings]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="samples per task")
    parser.add_argument(
        "--only", nargs="*", default=[], choices=RANKINGS.names(), help="these rankings"
    )
    parser.add_argument("--layer", type=int, default=2, help="layer for the rankings")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    model, processor = open_model(MODEL, dtype=dtype)
    drawn = {task: list(samples(task, "test", arguments.count)) for task in TASKS}
    # Encoded once: every setting answers the same prompts.
    encoded = {
        task: list(prompt_batches(processor, drawn[task], model, size=BATCH)) for task in TASKS
    }
    chosen = list(settings(len(decoder_layers(model)), arguments.layer, arguments.only))
    scores = []
    for name, policies in track(chosen, "settings", console=Console(stderr=True)):
        for task in TASKS:
            right = count = 0
            for policy in policies:
                block: AbstractContextManager[Any] = (
                    nullcontext() if policy is None else policy(model)
                )
                with block:
                    longest = 64 if task == "scenes-caption" else 6
                    texts = answers(model, processor, encoded[task], longest)
                if task == "scenes-caption":
                    captions = chair(texts, [item.objects for item in drawn[task]], mentions)
                    right, count = right + captions.hits, count + captions.objects
                else:
                    right += sum(map(Sample.accepts, drawn[task], texts))
                    count += len(texts)
            low, high = wilson_interval(right, count)
            scores.append(Score(name, task, right, count, right / count, low, high))
    print(markdown(scores, chosen))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(score) for score in scores], indent=2))


def markdown(scores: Sequence[Score], chosen: Sequence[tuple[str, list[Truncation | None]]]) -> str:
    """One row per setting, one column per task."""
    cells = {(score.setting, score.task): score for score in scores}
    lines = ["| setting | " + " | ".join(TASKS) + " |", "|---" * (1 + len(TASKS)) + "|"]
    for name, policies in chosen:
        is_oracle = any(policy is not None and policy.is_oracle for policy in policies)
        label = f"{name} (oracle)" if is_oracle else name
        row = [
            f"{s.share:.1%} ({s.low:.0%} to {s.high:.0%})"
            for s in (cells[name, task] for task in TASKS)
        ]
        lines.append(f"| {label} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
