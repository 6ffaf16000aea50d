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
from transformers import AutoModelForImageTextToText, AutoProcessor

from training.evaluate import MODEL
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


def batches(processor: Any, asked: Sequence[Sample], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Encode the prompts of a task once; every setting answers the same ones."""
    encoded = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        messages = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": s.question}]}]
            for s in part
        ]
        prompts = [processor.apply_chat_template(m, add_generation_prompt=True) for m in messages]
        inputs = processor(
            text=prompts, images=[s.picture for s in part], padding=True, return_tensors="pt",
            add_special_tokens=False,
        )  # fmt: skip
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        encoded.append(dict(inputs))
    return encoded


def answers(model: Any, processor: Any, encoded: list[dict[str, Any]], longest: int) -> list[str]:
    said: list[str] = []
    for inputs in encoded:
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=longest)
        new = ids[:, inputs["input_ids"].shape[1] :]
        said += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return said


def settings(
    layers: int, at: int, only: Sequence[str]
) -> Iterator[tuple[str, list[Truncation | None]]]:
    for layer in range(0 if only else layers):
        yield f"keep 0 at {layer}", [Truncation(layer, 0)]
    yield "untouched", [None]
    for keep in KEEPS:
        for name in only or [one for one in RANKINGS.names() if one != "top_left"]:
            seeds = RANDOM_SEEDS if name == "random" else ()
            chosen = [Random(seed) for seed in seeds] or [as_ranking(name)]
            yield f"{name}, keep {keep:.0%}", [Truncation(at, keep, one) for one in chosen]


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
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=dtype)
    processor = AutoProcessor.from_pretrained(MODEL)
    asked = {task: list(samples(task, "test", arguments.count)) for task in TASKS}
    encoded = {task: batches(processor, asked[task], dtype) for task in TASKS}
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
                    said = answers(model, processor, encoded[task], longest)
                if task == "scenes-caption":
                    captions = chair(said, [one.objects for one in asked[task]], mentions)
                    right, count = right + captions.hits, count + captions.objects
                else:
                    right += sum(map(Sample.accepts, asked[task], said))
                    count += len(said)
            low, high = wilson_interval(right, count)
            scores.append(Score(name, task, right, count, right / count, low, high))
    print(markdown(scores, chosen))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(score) for score in scores], indent=2))


def markdown(scores: Sequence[Score], chosen: Sequence[tuple[str, Any]]) -> str:
    """One row per setting, one column per task."""
    cells = {(score.setting, score.task): score for score in scores}
    lines = ["| setting | " + " | ".join(TASKS) + " |", "|---" * (1 + len(TASKS)) + "|"]
    for name, _ in chosen:
        label = f"{name} (oracle)" if as_ranking(name.split(",")[0]).is_oracle else name
        row = [
            f"{s.share:.1%} ({s.low:.0%} to {s.high:.0%})"
            for s in (cells[name, task] for task in TASKS)
        ]
        lines.append(f"| {label} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
