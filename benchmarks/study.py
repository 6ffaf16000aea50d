"""What twenty truncations of one sample cost: sharing work, against one run each.

    python benchmarks/study.py                 # scenes-llava, then a large random model; CPU or GPU
    python benchmarks/study.py --json out.json # the same figures for machines
    python benchmarks/study.py --clock cpu     # processor time: where other work shares the machine

Twenty truncations: none, 10 %, 25 % and 50 % of the image tokens kept, from five layers on. All
take turns in one process:

plain
    The untouched model answers once: picture, prompt and every answer token.
shared
    :func:`vlmflow.truncation.shared_answers.shared_answers`: the untouched answer and all twenty.
together
    The same for all samples of a task in one call, which puts several into one batch; against one
    plain run for each of them.
one by one
    The untouched model and each truncation by a ``generate`` call of its own. The answers have to
    be the same.
floor
    The least that sharing can take here: the prompt's layers untouched, those of every truncation
    on the tokens it has left (in one batch where these are equally many), by hand
    (:mod:`measured_floor`), and the untouched answer's decoding steps once for all.

``scenes-llava`` (12 layers, 144 image tokens, float32) answers test samples of the four tasks, so
that truncated answers follow the untouched one as they do in a study. The random LLaVA (24 layers,
width 1,024, bfloat16, 576 image tokens, 56 of text, 8 answer tokens) is nearer to real models in
size. In bfloat16 its answers may differ in rounding, so only ``scenes-llava``'s are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measured_floor import shared_prefills, truncated_prefill
from random_llava import build, clocked, prompt_inputs

import vlmflow
from vlmflow import LVLM, Truncation
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.prompt import Prompt
from vlmflow.scenes.tasks import TASKS
from vlmflow.tasks.registry import find_task
from vlmflow.truncation.shared_answers import shared_answers

SHARES = (1 / 8, 1 / 4, 1 / 2, 5 / 8, 3 / 4)
KEEPS = (0, 0.1, 0.25, 0.5)


def policies(layers: int) -> list[Truncation]:
    return [Truncation(round(share * layers), keep) for share in SHARES for keep in KEEPS]


def random_llava(device: str) -> tuple[LVLM, Prompt]:
    model = build(
        layers=24, width=1024, heads=16, key_heads=16, side=336, dtype="bfloat16", device=device
    )
    model.generation_config.eos_token_id = None
    inputs = prompt_inputs(model, 16, 1, 40)
    segments = np.full(inputs["input_ids"].shape[1], Segment.IMAGE, dtype=np.int8)
    segments[:16], segments[-40:] = Segment.SYSTEM, Segment.USER
    layout = TokenLayout(segments, ("",) * len(segments), ())
    tokenizer = SimpleNamespace(
        eos_token_id=None,
        convert_ids_to_tokens=str,
        pad_token_id=None,
    )
    processor: Any = SimpleNamespace(tokenizer=tokenizer, image_processor=SimpleNamespace())
    return LVLM(model, processor, name="random"), Prompt(inputs, layout, (), "")


def timed(work: Callable[[], Any], device: str, clock: str) -> tuple[float, Any]:
    """Run once: seconds of the wall clock, or of the processors; and what it returned."""
    if clock == "wall":
        return clocked(work, device)
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def lengths(
    vlm: LVLM, prompt: Prompt, policies: list[Truncation]
) -> tuple[list[tuple[int, int]], int, int]:
    """First layer and tokens left of each truncation; all tokens, and those after the picture."""
    branches = []
    for policy in policies:
        with policy(vlm.model) as run, torch.no_grad():
            vlm.model(**prompt.inputs, logits_to_keep=1)
        branches.append((policy.first_layer, int(run.tokens_per_layer[0, -1])))
    total = len(prompt.layout)
    return branches, total, total - 1 - int(prompt.layout.image_positions[-1])


def measure(
    vlm: LVLM, prompts: list[Prompt], length: int, runs: int, same: bool, clock: str
) -> dict:
    device = str(vlm.device)
    chosen = policies(vlm.num_layers)
    times: dict[str, list[float]] = {"plain": [], "shared": [], "one by one": [], "floor": []}
    agreed = 0
    for prompt in prompts:
        answer = vlm.generate_ids(prompt, max_new_tokens=length)  # warm-up

        def alone(prompt: Prompt = prompt) -> list[tuple[int, ...]]:
            return [
                vlm.generate_ids(prompt, max_new_tokens=length, truncation=policy)
                for policy in (None, *chosen)
            ]

        branches, length_of_all, user = lengths(vlm, prompt, chosen)

        def prefill(
            prompt: Prompt = prompt, tokens: int = length_of_all, user: int = user
        ) -> torch.Tensor:
            return truncated_prefill(vlm.model, prompt.inputs, [tokens] * vlm.num_layers, user)

        for _ in range(runs):
            plain, _ = timed(
                lambda p=prompt: vlm.generate_ids(p, max_new_tokens=length), device, clock
            )
            shared, shared_ids = timed(
                lambda p=prompt: shared_answers(vlm, [p], chosen, max_new_tokens=length)[0],
                device,
                clock,
            )
            single, expected = timed(alone, device, clock)
            by_hand, _ = timed(
                lambda p=prompt, own=branches, user=user: shared_prefills(
                    vlm.model, p.inputs, own, user
                ),
                device,
                clock,
            )
            floor = by_hand + max(0.0, plain - timed(prefill, device, clock)[0])
            for name, seconds in zip(times, (plain, shared, single, floor), strict=True):
                times[name].append(seconds)
        agreed += shared_ids.count(answer) - 1
        if same and shared_ids != expected:
            raise SystemExit("the answers are not the same")
    together = []
    for _ in range(runs):
        plain, _ = timed(
            lambda: [vlm.generate_ids(prompt, max_new_tokens=length) for prompt in prompts],
            device,
            clock,
        )
        seconds, _ = timed(
            lambda: shared_answers(vlm, prompts, chosen, max_new_tokens=length), device, clock
        )
        together.append(seconds / plain)
    ratio = {
        name: statistics.median(np.array(times[name]) / np.array(times["plain"]))
        for name in ("shared", "one by one", "floor")
    }
    return {
        "model": vlm.name,
        "samples": len(prompts),
        "answers like the untouched one": agreed / (len(prompts) * len(chosen)),
        "plain seconds": statistics.median(times["plain"]),
        "shared": ratio["shared"],
        "together": statistics.median(together),
        "one by one": ratio["one by one"],
        "floor": ratio["floor"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=8, help="of every task")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--large",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the random model in bfloat16, too: minutes a run on a CPU without its instructions",
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.device != "cpu":
        parser.error("--clock cpu counts no time of another device: use --device cpu with it")
    vlm = vlmflow.load("scenes-llava", device=arguments.device, dtype="float32")
    rows = []
    for name in TASKS:
        samples = find_task(name).samples("test", arguments.samples)
        prompts = [vlm.prepare(sample.pictures, sample.question) for sample in samples]
        rows.append(
            {"task": name} | measure(vlm, prompts, 64, arguments.runs, True, arguments.clock)
        )
    if arguments.large:
        large, prompt = random_llava(arguments.device)
        measured = measure(large, [prompt], 8, arguments.runs, False, arguments.clock)
        rows.append({"task": ""} | measured)
    for row in rows:
        print(
            f"{row['model']:13} {row['task']:17} plain {1000 * row['plain seconds']:7.0f} ms   "
            f"20 truncations: shared {row['shared']:5.2f} x plain   "
            f"together {row['together']:5.2f} x   "
            f"one by one {row['one by one']:5.2f} x   floor {row['floor']:5.2f} x   "
            f"{100 * row['answers like the untouched one']:3.0f} % answer like the untouched model"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
