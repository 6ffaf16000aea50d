"""What does it cost to ask, at every exit layer, whether a prompt may leave?

    python benchmarks/exits.py            # 640 tokens, 24 layers; CPU or GPU

A randomly initialised LLaVA (24 layers, width 1,024, bfloat16; 576 image tokens and 64 of text),
SDPA and a KV cache on both sides. For every bundled exit signal, a policy of eight exit layers that
no prompt ever leaves by; it takes turns with the untouched model, and its overhead is the median of
the paired ratios. Below that, for comparison, the same eight exits where every prompt leaves at the
fourth, against the truncation at that layer.
"""

from __future__ import annotations

import argparse
import math
import statistics
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from random_llava import build, clocked, prompt_inputs
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.probe import Probe
from vlmflow.truncation.exit_signals.registry import EXIT_SIGNALS
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.truncation import Truncation

SIDE, SYSTEM, USER, EXITS = 336, 35, 29, 8
PROBE = "probe"


def policies(layers: int, width: int) -> dict[str, tuple[ExitPolicy, ExitPolicy, Truncation]]:
    """Return for every signal a policy of nobody, one of everybody at an exit, and a truncation."""
    exits = tuple(round(1 + (layers - 2) * step / (EXITS - 1)) for step in range(EXITS))
    made = {}
    for name in EXIT_SIGNALS.bundled():
        signal: ExitSignal = EXIT_SIGNALS.read(name)
        if name == PROBE:
            signal = Probe(tuple((layer, 0.0, (0.01,) * (2 * width)) for layer in exits))
        keeps = (0,) * EXITS
        never = ExitPolicy(exits, keeps, signal=signal, thresholds=(math.inf,) * EXITS)
        at = (math.inf,) * 3 + (-math.inf,) * (EXITS - 3)
        fourth = ExitPolicy(exits, keeps, signal=signal, thresholds=at)
        made[name] = never, fourth, Truncation(exits[3], 0)
    return made


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Tensor], policy: Any, device: str) -> float:
    """Seconds of one prefill with a fresh cache."""
    block: AbstractContextManager[Any] = nullcontext() if policy is None else policy(model)
    with block:
        cache = DynamicCache(config=model.config.get_text_config())
        seconds, _ = clocked(
            lambda: model(**inputs, past_key_values=cache, logits_to_keep=1), device
        )
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    model = build(
        layers=arguments.layers, width=arguments.width, heads=16, key_heads=16, side=SIDE,
        dtype="bfloat16", device=arguments.device,
    )  # fmt: skip
    inputs = prompt_inputs(model, SYSTEM, 1, USER)
    table = Table("signal", "nobody leaves", "all leave at the fourth, against the truncation")
    for name, ways in policies(arguments.layers, arguments.width).items():
        times: list[list[float]] = []
        for _ in range(arguments.repeats + 1):  # the first round warms up
            times.append([prefill(model, inputs, way, arguments.device) for way in (None, *ways)])
        ratios = [
            statistics.median(row[own] / row[other] for row in times[1:])
            for own, other in ((1, 0), (2, 3))
        ]
        table.add_row(name, *(f"{100 * (ratio - 1):+.1f} %" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
