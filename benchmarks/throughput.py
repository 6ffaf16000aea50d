"""Samples per second of cliff studies in batches, against one sample at a time.

    python benchmarks/throughput.py                  # scenes-llava, existence; CPU or GPU
    python benchmarks/throughput.py --dtype bfloat16 --model scenes-smollm2

For each batch size, taking turns in one process, over the same prepared samples:

forward
    The untouched model's forward pass alone: what batching can gain here at all. On a CPU whose
    cores one sample keeps busy it is little, whatever the scheduler does.
answers
    Greedy answers: one prefill and a few steps that a batch shares.
cliff
    All that a cliff study measures of a sample: answer, removal curve and signals.

Beside the times: answers that differ from those one by one, which is rounding (none in float32),
and what ``--batch auto`` would choose.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from random_llava import clocked

import vlmflow
from vlmflow import LVLM
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.batch_size import BatchSize
from vlmflow.lvlm.prompt import Prompt
from vlmflow.studies.batching.ahead import Prepared, Preparer
from vlmflow.studies.batching.batches import Batches
from vlmflow.studies.cliff_layer.measurements import measure_samples
from vlmflow.tasks.registry import find_task

SIZES = (1, 2, 4, 8, 16)


def in_batches(prepared: Sequence[Prepared], size: int, work: Callable) -> list:
    """Run all samples in batches of a size; results in their order."""
    places = BatchSize(size).batches([len(item.prompt.layout) for item in prepared])
    results: dict[int, object] = {}
    for batch in places:
        results.update(zip(batch, work([prepared[place] for place in batch]), strict=True))
    return [results[place] for place in range(len(prepared))]


def works(vlm: LVLM, length: int) -> dict[str, Callable]:
    """What is timed, by name."""

    def prompts(batch: Sequence[Prepared]) -> list[Prompt]:
        return [item.prompt for item in batch if item.prompt is not None]

    @torch.no_grad()
    def forward(batch: Sequence[Prepared]) -> list[None]:
        inputs, _ = collate(prompts(batch), pad_id(vlm.processor.tokenizer))
        vlm.model(**inputs, logits_to_keep=1)
        return [None] * len(batch)

    def answers(batch: Sequence[Prepared]) -> list[tuple[int, ...]]:
        return vlm.generate_batch(prompts(batch), max_new_tokens=length)

    def cliff(batch: Sequence[Prepared]) -> list[str]:
        return [measured.answer for measured in measure_samples(vlm, batch, length)]

    return {"forward": forward, "answers": answers, "cliff": cliff}


def measure(vlm: LVLM, prepared: list[Prepared], length: int, runs: int) -> dict:
    device = str(vlm.device)
    rows = {}
    for name, work in works(vlm, length).items():
        seconds: dict[int, list[float]] = {size: [] for size in SIZES}
        differing = {}
        expected = in_batches(prepared, 1, work)  # a warm-up, too
        for _ in range(runs):
            for size in SIZES:
                taken, results = clocked(
                    lambda size=size, work=work: in_batches(prepared, size, work), device
                )
                seconds[size].append(taken)
                pairs = zip(results, expected, strict=True)
                differing[size] = sum(own != other for own, other in pairs)
        rows[name] = {
            size: {
                "samples per second": len(prepared) / statistics.median(seconds[size]),
                "gain": statistics.median(
                    alone / own for alone, own in zip(seconds[1], seconds[size], strict=True)
                ),
                "differing": differing[size],
            }
            for size in SIZES
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--task", default="scenes-existence")
    parser.add_argument("--dtype")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    vlm = vlmflow.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    task = find_task(arguments.task)
    preparer = Preparer(vlm)
    prepared = [preparer.prepare(sample) for sample in task.samples("test", arguments.samples)]
    automatic = Batches("auto", vlm.device)
    automatic.plan(prepared, works(vlm, task.max_new_tokens)["cliff"])
    assert automatic.size is not None
    rows = measure(vlm, prepared, task.max_new_tokens, arguments.runs)
    print(
        f"{arguments.model}, {arguments.task}, {arguments.samples} samples, "
        f"{torch.get_num_threads()} threads; --batch auto chooses {automatic.size.most}"
    )
    for name, sizes in rows.items():
        for size, row in sizes.items():
            print(
                f"{name:8} batch {size:2}: {row['samples per second']:7.2f} samples/s, "
                f"{row['gain']:5.2f} x batch 1, {row['differing']} answers differ"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
