"""How many prompts leave elsewhere in a batch than alone, as sums are rounded in another order?

    vlmflow certify scenes-mixed --out policy.json
    python benchmarks/batched_exits.py policy.json --samples 200 --batch 8

Answers samples of the policy's task under the policy, one by one and in batches of prompts as they
come, in the model's own number format and in float32, and counts the exits and the answers that
differ. In float32 none should; in bfloat16 a signal that lies near its threshold can fall on either
side.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import vlmflow
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.studies.certification.run import read_certificate
from vlmflow.tasks.registry import find_task

Outcome = tuple[int, tuple[int, ...]]
"""Where a prompt left, and its answer."""


def alone(
    vlm: LVLM, prompts: list[Prompt], policy: vlmflow.ExitPolicy, length: int
) -> list[Outcome]:
    """Answer prompts one by one."""
    outcomes = []
    for prompt in prompts:
        with policy(vlm.model) as run:
            ids = vlm.generate_ids(prompt, max_new_tokens=length)
        outcomes.append((int(run.exit_layers[0]), tuple(ids)))
    return outcomes


def together(
    vlm: LVLM, prompts: list[Prompt], policy: vlmflow.ExitPolicy, length: int, batch: int
) -> list[Outcome]:
    """Answer prompts in left-padded batches."""
    outcomes: list[Outcome] = []
    for start in range(0, len(prompts), batch):
        group = prompts[start : start + batch]
        with policy(vlm.model) as run:
            answers = vlm.generate_batch(group, max_new_tokens=length)
        outcomes += zip(run.exit_layers.tolist(), answers, strict=True)
    return outcomes


def differing(one: list[Outcome], other: list[Outcome]) -> tuple[int, int]:
    """Count exits and answers that differ."""
    pairs = list(zip(one, other, strict=True))
    exits = sum(a[0] != b[0] for a, b in pairs)
    return exits, sum(a[1] != b[1] for a, b in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", type=Path, help="what vlmflow certify wrote")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    certificate = read_certificate(arguments.policy.with_suffix(""))
    # Its promise is about one number format; here others are looked at, too.
    policy = replace(vlmflow.ExitPolicy.load(arguments.policy), certificate=None)
    task = find_task(certificate.task)
    name, own = str(certificate.model["name"]), str(certificate.model["dtype"])
    for dtype in dict.fromkeys((own, "float32")):
        vlm = vlmflow.load(name, dtype=dtype)
        prompts = [
            vlm.prepare(sample.pictures, sample.question)
            for sample in task.samples("test", arguments.samples)
        ]
        length = task.max_new_tokens
        one = alone(vlm, prompts, policy, length)
        exits, answers = differing(one, together(vlm, prompts, policy, length, arguments.batch))
        low, high = wilson_interval(exits, len(prompts))
        left = sum(layer < vlm.num_layers for layer, _ in one)
        print(
            f"{name} in {dtype}: of {len(prompts)} prompts, of which {left} leave, {exits} leave "
            f"elsewhere in batches of {arguments.batch} ({exits / len(prompts):.1%}; {low:.1%} to "
            f"{high:.1%}); {answers} answers differ"
        )


if __name__ == "__main__":
    main()
