"""Samples per second in batches, of studies and explanations, against one at a time.

    python benchmarks/throughput.py                  # scenes-llava, existence; CPU or GPU
    python benchmarks/throughput.py --dtype bfloat16 --model scenes-smollm2
    python benchmarks/throughput.py --only explain --sizes 1 16 --dtype float32

For each batch size, taking turns in one process, over the same prepared samples:

forward
    The untouched model's forward pass alone: what batching can gain here at all. On a CPU whose
    cores one sample keeps busy it is little, whatever the scheduler does.
answers
    Greedy answers: one prefill and a few steps that a batch shares.
cliff
    All that a cliff study measures of a sample: answer, removal curve and signals.
study
    Answers of a sample untouched and under twenty truncations, as ``vlmflow study`` makes them. How
    many of a batch are decoded together is limited by what their keys and values take.
certify
    All that ``vlmflow certify`` measures of a sample: answers under sixteen exits, and signals.
explain
    All that ``vlmflow explain TASK`` measures of a sample by default: answer, one forward pass, one
    backward pass per answer token, and one forward pass without the picture.

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
from study import policies

import vlmflow
from vlmflow import LVLM
from vlmflow.errors import InputError
from vlmflow.explanation.explain import information_flow
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.batch_size import BatchSize
from vlmflow.lvlm.prompt import Prompt
from vlmflow.studies.batching.ahead import Prepared, Preparer
from vlmflow.studies.batching.batches import Batches
from vlmflow.studies.certification.measurements import measure as measure_exits
from vlmflow.studies.certification.run import all_signals
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.studies.cliff_layer.measurements import measure_samples
from vlmflow.studies.explanations.explaining import explained_together
from vlmflow.tasks.registry import find_task
from vlmflow.truncation.shared_answers import shared_answers

SIZES = (1, 2, 4, 8, 16)

WORKS = ("forward", "answers", "cliff", "study", "certify", "explain")


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

    def explain(batch: Sequence[Prepared]) -> list[str]:
        options = ExplainOptions(max_new_tokens=length)
        explained = explained_together(vlm, batch, options)
        return [
            str(own) if isinstance(own, InputError) else information_flow(vlm, own, options).answer
            for own in explained
        ]

    twenty = policies(vlm.num_layers)

    def study(batch: Sequence[Prepared]) -> list[list[tuple[int, ...]]]:
        return shared_answers(vlm, prompts(batch), twenty, max_new_tokens=length)

    settings = CertifySettings()
    exits, signals = settings.exit_layers(vlm.num_layers), all_signals()

    def certify(batch: Sequence[Prepared]) -> list[list[list[int]]]:
        measured = measure_exits(
            vlm, prompts(batch), exits, settings.amounts(), settings.rank_by, signals, length
        )
        return [[answer["ids"] for answer in one.answers] for one in measured]

    return {
        "forward": forward,
        "answers": answers,
        "cliff": cliff,
        "study": study,
        "certify": certify,
        "explain": explain,
    }


def automatic(vlm: LVLM, prepared: list[Prepared], work: Callable) -> int:
    """What ``--batch auto`` would choose."""
    batches = Batches("auto", vlm.device)
    batches.plan(prepared, work)
    assert batches.size is not None
    return batches.size.most


def measure(
    vlm: LVLM, prepared: list[Prepared], chosen: dict[str, Callable], sizes: list[int], runs: int
) -> dict:
    device = str(vlm.device)
    rows = {}
    for name, work in chosen.items():
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        differing = {}
        expected = in_batches(prepared, 1, work)  # a warm-up, too
        for _ in range(runs):
            for size in sizes:
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
            for size in sizes
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
    parser.add_argument("--only", nargs="+", choices=WORKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="1 is always measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = sorted({1, *arguments.sizes})
    vlm = vlmflow.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    task = find_task(arguments.task)
    preparer = Preparer(vlm)
    prepared = [preparer.prepare(sample) for sample in task.samples("test", arguments.samples)]
    chosen = works(vlm, task.max_new_tokens)
    if arguments.only:
        chosen = {name: chosen[name] for name in arguments.only}
    studies = [name for name in WORKS[2:] if name in chosen]
    auto = {name: automatic(vlm, prepared, chosen[name]) for name in studies}
    rows = measure(vlm, prepared, chosen, sizes, arguments.runs)
    print(
        f"{arguments.model}, {vlm.model.dtype}, {arguments.task}, {arguments.samples} samples, "
        f"{torch.get_num_threads()} threads; --batch auto chooses {auto}"
    )
    for name, by_size in rows.items():
        for size, row in by_size.items():
            print(
                f"{name:8} batch {size:2}: {row['samples per second']:7.2f} samples/s, "
                f"{row['gain']:5.2f} x batch 1, {row['differing']} answers differ"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
