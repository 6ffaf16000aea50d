"""Does removing tokens save the time it should? Prefill, decoding and cache against the ideal.

    python benchmarks/truncation.py                 # 640 tokens, 24 layers; CPU or GPU
    python benchmarks/truncation.py --json out.json # the same figures for machines
    python benchmarks/truncation.py --pictures 8 --only "keep 0"   # decoding over a long context

A randomly initialised LLaVA (24 layers, width 1,024, 16 heads, bfloat16; 576 image tokens of one
picture and 64 of text) with SDPA and a KV cache on both sides. For every policy:

prefill
    Median time of one forward pass with a fresh cache, vision tower, projector, ranking and head
    for the last position included. Policies take turns with the untouched model in one process.
ideal
    What the operations allow: untouched time x share of the untouched model's operations
    (:func:`vlmflow.truncation.flops.prefill_cost`). ``of ideal`` is ideal / measured.
floor
    Median time of the same layers called by hand on exactly the tokens that each is given
    (:mod:`measured_floor`), in turns with the policy. ``of floor`` is floor / measured. Few rows
    are bound by reading the weights, which operations do not say.
per token
    Median time of one decoding step right after it, its share of the untouched step, and the share
    of the untouched step's bytes: a step reads the decoder's and the head's weights and the cache.
cache
    Bytes of keys and values against the formula: tokens per layer x key heads x head width x 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measured_floor import truncated_prefill
from random_llava import build, clocked, prompt_inputs
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vlmflow.lvlm.model_parts import decoder_layers
from vlmflow.truncation import Truncation
from vlmflow.truncation.flops import DecoderShape, prefill_cost
from vlmflow.truncation.rankings.registry import RANKINGS, as_ranking

SIDE = 336  # pixels: 576 image tokens
SYSTEM, USER = 35, 29


@dataclass(frozen=True)
class Row:
    """One policy."""

    policy: str
    prefill: float
    speed_up: float
    ideal_speed_up: float
    of_ideal: float
    floor: float
    of_floor: float
    per_token: float
    per_token_share: float
    bytes_share: float
    cache: int
    cache_formula: int


@torch.no_grad()
def run(
    model: Any, inputs: dict[str, Tensor], policy: Truncation | None, device: str, steps: int
) -> tuple[float, float, int]:
    """Times of one prefill and of a decoding step, and the bytes of the prefill's cache."""
    block: AbstractContextManager[Any] = nullcontext() if policy is None else policy(model)
    with block:
        cache = DynamicCache(config=model.config.get_text_config())
        prefill, output = clocked(
            lambda: model(**inputs, past_key_values=cache, logits_to_keep=1), device
        )
        held = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.layers)
        token, mask = output.logits.argmax(-1), inputs["attention_mask"]
        decoding = []
        for _ in range(steps):
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            taken, output = clocked(
                lambda token=token, mask=mask: model(
                    input_ids=token, attention_mask=mask, past_key_values=cache
                ),
                device,
            )
            decoding.append(taken)
            token = output.logits[:, -1:].argmax(-1)
    return prefill, statistics.median(decoding), held


def policies(layers: int, rankings: list[str]) -> dict[str, Truncation]:
    half = layers // 2
    truncations = {f"keep 0 at {half}": Truncation(half, 0), "keep 0 at 2": Truncation(2, 0)}
    truncations[f"keep 0 at {layers - 1}"] = Truncation(layers - 1, 0)
    for name in rankings:
        truncations[f"keep 25 % at 2, {name}"] = Truncation(2, 0.25, name)
    truncations["keep 25 % at 2, merge"] = Truncation(2, 0.25, remainder="merge")
    truncations["keep 25 % at 2, repack"] = Truncation(2, 0.25, positions="repack")
    truncations["keep all at 2, last_attention"] = Truncation(2, 1.0)
    return truncations


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-heads", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="decoding steps per repetition")
    parser.add_argument("--only", default="", help="policies whose name has this in it")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    model = build(
        layers=arguments.layers, width=arguments.width, heads=arguments.heads,
        key_heads=arguments.key_heads, side=SIDE, dtype=arguments.dtype, device=arguments.device,
    )  # fmt: skip
    inputs = prompt_inputs(model, SYSTEM, arguments.pictures, USER)
    image = arguments.pictures * model.config.image_seq_length
    rankings = [name for name in RANKINGS.names() if not as_ranking(name).is_oracle]
    chosen: dict[str, Truncation | None] = {
        "untouched": None,
        **{
            name: policy
            for name, policy in policies(arguments.layers, rankings).items()
            if arguments.only in name
        },
    }
    shape = DecoderShape.of(model, decoder_layers(model))
    costs = {
        name: prefill_cost(model, decoder_layers(model), policy, SYSTEM, image, USER)
        for name, policy in chosen.items()
    }
    measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in chosen}
    floors: dict[str, list[float]] = {name: [] for name in chosen}
    # The untouched model runs beside every policy: a machine that slows down slows both.
    beside: dict[str, list[float]] = {name: [] for name in chosen}
    for repeat in range(arguments.repeats + 1):  # the first round warms up
        for name, policy in chosen.items():
            taken = run(model, inputs, policy, arguments.device, arguments.steps)
            plain = run(model, inputs, None, arguments.device, 1)[0]
            tokens = costs[name].tokens_per_layer
            floor, _ = clocked(
                lambda tokens=tokens: truncated_prefill(model, inputs, tokens, USER),
                arguments.device,
            )
            if repeat:
                measured[name].append(taken)
                beside[name].append(plain)
                floors[name].append(floor)
    untouched_step = statistics.median(step for _, step, _ in measured["untouched"])
    rows = []
    weights = sum(
        weight.numel() * weight.element_size()
        for part in (decoder_layers(model), model.lm_head)
        for weight in part.parameters()
    )
    for name in chosen:
        cost = costs[name]
        prefill = statistics.median(taken for taken, _, _ in measured[name])
        speed_up = statistics.median(beside[name]) / prefill
        step = statistics.median(taken for _, taken, _ in measured[name])
        assert cost.exact_share is not None  # every layer of a LLaVA can be counted
        ideal = 1 / cost.exact_share
        floor = statistics.median(floors[name])
        pairs = zip(floors[name], measured[name], strict=True)
        of_floor = statistics.median(least / taken for least, (taken, _, _) in pairs)
        per_key = shape.key_heads * shape.head_dim * 2 * model.dtype.itemsize
        formula = sum(cost.tokens_per_layer) * per_key
        rows.append(
            Row(
                name, prefill, speed_up, ideal, speed_up / ideal, floor, of_floor,
                step, step / untouched_step,
                (weights + formula) / (weights + measured["untouched"][0][2]),
                measured[name][0][2], formula,
            )
        )  # fmt: skip
    size = f"{SYSTEM + image + USER} tokens, {arguments.layers} x {arguments.width}"
    where = f"{arguments.dtype} on {arguments.device}, median of {arguments.repeats}"
    table = Table(title=f"{size}, {where}")
    for column in ("policy", "prefill", "speed-up", "ideal", "of ideal", "floor", "of floor",
                   "per token", "share",
                   "bytes", "cache", "formula"):  # fmt: skip
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        table.add_row(
            row.policy, f"{row.prefill:.3f} s", f"{row.speed_up:.2f}x",
            f"{row.ideal_speed_up:.2f}x", f"{row.of_ideal:.0%}", f"{row.floor:.3f} s",
            f"{row.of_floor:.0%}", f"{row.per_token * 1e3:.1f} ms",
            f"{row.per_token_share:.2f}x", f"{row.bytes_share:.2f}x",
            f"{row.cache / 2**20:.1f} MiB", f"{row.cache_formula / 2**20:.1f} MiB",
        )  # fmt: skip
    Console(width=140).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
