"""What a whole removal curve costs: one combined pass against one pass per layer.

    python benchmarks/removal_curve.py                 # 640 tokens, 24 layers; CPU or GPU
    python benchmarks/removal_curve.py --json out.json # the same figures for machines

A randomly initialised LLaVA (24 layers, width 1,024, 16 heads, bfloat16; 576 image tokens of one
picture, 64 of text, 8 of them the answer), SDPA. All take turns in one process:

plain
    One forward pass of prompt and answer, logits at the answer's positions only.
curve
    :func:`vlmflow.removal.curve.removal_curves` with keep 0: every layer, and the comparison.
per layer
    The usual way: the same pass once per layer, each with the truncation engine.
floor
    The plain pass and a branch from each layer on, by hand on exactly the tokens that each layer is
    given (:func:`measured_floor.curve_passes`), one batch row only. What ``of floor`` is held
    against.
operations
    Operations of the branches and of the plain pass, as a share of the plain pass's: what the curve
    has to compute at least (decoder matrices and attention; without vision tower and head).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measured_floor import curve_passes
from random_llava import build, clocked, prompt_inputs

from vlmflow import LVLM
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.prompt import Prompt
from vlmflow.removal.curve import removal_curves
from vlmflow.truncation import Truncation
from vlmflow.truncation.flops import DecoderShape

SIDE = 336  # pixels: 576 image tokens


def prompt_batch(model: Any, system: int, user: int, answer: int, batch: int) -> list[Prompt]:
    inputs = prompt_inputs(model, system, 1, user + answer)
    segments = np.full(inputs["input_ids"].shape[1], Segment.IMAGE, dtype=np.int8)
    segments[:system] = Segment.SYSTEM
    segments[-user - answer :] = Segment.USER
    segments[-answer:] = Segment.ANSWER
    layout = TokenLayout(segments, ("",) * len(segments), ())
    return [Prompt(inputs, layout, (), "", answer="random")] * batch


def least_operations(model: Any, system: int, image: int, after: int) -> float:
    shape = DecoderShape.of(model, model.model.language_model.layers)
    layers = len(model.model.language_model.layers)
    total = system + image + after
    plain = layers * layer_operations(shape, total, total)
    branches = sum(
        (layer + 1) * layer_operations(shape, after, system + after) for layer in range(layers)
    )
    return (plain + branches) / plain


def layer_operations(shape: DecoderShape, queries: int, keys: int) -> float:
    width, heads = shape.width, shape.heads * shape.head_dim
    matrices = 2 * width * heads + 2 * width * shape.key_heads * shape.head_dim
    matrices += 3 * width * shape.intermediate
    return 2 * queries * matrices + 4 * queries * keys * heads


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-heads", type=int, default=16)
    parser.add_argument("--system", type=int, default=35, help="text tokens before the picture")
    parser.add_argument("--user", type=int, default=21, help="text tokens after it")
    parser.add_argument("--answer", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    model = build(
        layers=options.layers, width=options.width, heads=options.heads,
        key_heads=options.key_heads, side=SIDE, dtype=options.dtype, device=options.device,
    )  # fmt: skip
    tokenizer = SimpleNamespace(pad_token_id=0)
    processor = SimpleNamespace(tokenizer=tokenizer, image_processor=(), image_token="<image>")
    vlm = LVLM(model, processor)
    batch = prompt_batch(model, options.system, options.user, options.answer, options.batch)
    inputs = {
        name: torch.cat([prompt.inputs[name] for prompt in batch]) for name in batch[0].inputs
    }
    rows = torch.from_numpy(batch[0].layout.answer_rows).to(options.device)

    def plain() -> None:
        model(**inputs, use_cache=False, logits_to_keep=rows)

    def per_layer() -> None:
        for layer in range(options.layers):
            with Truncation(layer, 0)(model):
                plain()

    after = options.user + options.answer

    def by_hand() -> None:
        for _ in batch:
            curve_passes(model, batch[0].inputs, options.system, after, options.answer)

    cases = {
        "plain": plain,
        "curve": lambda: removal_curves(vlm, batch),
        "per layer": per_layer,
        "floor": by_hand,
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(options.repeats + 1):  # the first round warms up
        for name, work in cases.items():
            taken, _ = clocked(work, options.device)
            if repeat:
                times[name].append(taken)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    image = model.config.image_seq_length
    least = least_operations(model, options.system, image, after)
    of_floor = statistics.median(
        fastest / taken for fastest, taken in zip(times["floor"], times["curve"], strict=True)
    )
    tokens = options.system + image + after
    print(
        f"{options.batch} x {tokens} tokens, {options.layers} x {options.width}, "
        f"{options.dtype} on {options.device}, median of {options.repeats}"
    )
    for name, taken in seconds.items():
        print(f"  {name:10}{taken:9.3f} s{taken / seconds['plain']:8.2f}x")
    print(f"  {'operations':10}{'':11}{least:8.2f}x")
    print(f"the curve takes {1 / of_floor:.2f} times its measured floor")
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        facts = {
            "settings": settings,
            "seconds": seconds,
            "operations": least,
            "of floor": of_floor,
        }
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
