"""What measuring costs, against the usual way and against the least it could cost.

    python benchmarks/explain.py                 # about 600, 1,500 and 3,000 tokens; CPU or GPU
    python benchmarks/explain.py --json out.json # the same figures for machines

Ways to explain one whole answer of a randomly initialised LLaVA (16 layers, width 1,024,
bfloat16), each with one forward and one backward pass:

usual
    Eager attention, ``output_attentions=True``, ``retain_grad`` on the attention of every layer.
floor
    SDPA, no explanation at all: forward, and backward to the embeddings. Nothing that needs a
    gradient can cost less.
vlmflow
    Attention flow, saliency flow and LLaVA-CAM of all layers.
low memory
    The same with ``low_memory=True``: layers recomputed in the backward pass.
without picture
    What ``vlm.explain`` runs beside it: one forward pass with all image tokens removed.

Weights are frozen everywhere and logits computed at the answer's positions only, so the usual way
is given the same savings. Times are medians over interleaved repetitions in one process, after one
warm-up round. Memory is the peak above what the loaded model takes: CUDA's own count on a GPU; on a
CPU the peak resident size of a process of its own per case, whose allocator gives freed memory back
at once (Linux). The time of that process is not used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_llava import build, clocked, prompt_inputs
from torch import Tensor

from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.truncation import Truncation

PICTURE_SIDE = 224  # pixels: 256 image tokens
QUESTION_TOKENS, ANSWER_TOKENS = 40, 8


@dataclass(frozen=True)
class Size:
    """Size of the model."""

    layers: int
    width: int
    heads: int
    key_heads: int
    dtype: str
    device: str

    def build(self) -> Any:
        return build(**asdict(self), side=PICTURE_SIDE)


def laid_out(model: Any, tokens: int) -> tuple[dict[str, Tensor], TokenLayout]:
    """As many whole pictures as fit beside question and answer; system text fills up the rest."""
    after, picture = QUESTION_TOKENS + ANSWER_TOKENS, model.config.image_seq_length
    pictures = (tokens - after) // picture
    inputs = prompt_inputs(model, tokens - after - pictures * picture, pictures, after)
    segments = np.full(tokens, Segment.SYSTEM, dtype=np.int8)
    segments[-after:] = Segment.USER
    segments[-ANSWER_TOKENS:] = Segment.ANSWER
    segments[-after - pictures * picture : -after] = Segment.IMAGE
    return inputs, TokenLayout(segments, ("",) * tokens, ())


def answer_score(logits: Tensor, inputs: dict[str, Tensor], layout: TokenLayout) -> Tensor:
    ids = inputs["input_ids"][0, torch.from_numpy(layout.answer_positions)]
    return logits[0].float().log_softmax(-1).gather(1, ids[:, None]).sum()


def forward_and_backward(
    model: Any, inputs: dict[str, Tensor], layout: TokenLayout, options: dict[str, Any]
) -> Any:
    embeddings = model.get_input_embeddings()
    with as_found(model, frozen=True), torch.enable_grad():
        handle = embeddings.register_forward_hook(lambda _m, _a, output: output.requires_grad_())
        try:
            rows = torch.from_numpy(layout.answer_rows).to(model.device)
            output = model(**inputs, use_cache=False, logits_to_keep=rows, **options)
            for attention in output.attentions or ():
                attention.retain_grad()
            answer_score(output.logits, inputs, layout).backward()
        finally:
            handle.remove()
    return output.attentions


def usual(model: Any, inputs: dict[str, Tensor], layout: TokenLayout) -> None:
    model.set_attn_implementation("eager")
    try:
        attentions = forward_and_backward(model, inputs, layout, {"output_attentions": True})
    finally:
        model.set_attn_implementation("sdpa")
    for attention in attentions:
        (attention.detach() * attention.grad).sum(1).abs()


def floor(model: Any, inputs: dict[str, Tensor], layout: TokenLayout) -> None:
    forward_and_backward(model, inputs, layout, {})


SIGNALS = ("attention", "saliency", "llava_cam")


def ours(model: Any, inputs: dict[str, Tensor], layout: TokenLayout) -> None:
    layers = model.model.language_model.layers
    measure(model, layers, inputs, [layout], ExplainOptions(SIGNALS, per_token=False))


def ours_low_memory(model: Any, inputs: dict[str, Tensor], layout: TokenLayout) -> None:
    layers = model.model.language_model.layers
    options = ExplainOptions(SIGNALS, per_token=False, low_memory=True)
    measure(model, layers, inputs, [layout], options)


def without_picture(model: Any, inputs: dict[str, Tensor], layout: TokenLayout) -> None:
    rows = torch.from_numpy(layout.answer_rows).to(model.device)
    with as_found(model), torch.no_grad(), Truncation(0, 0)(model):
        logits_at(model, inputs, rows)


CASES: dict[str, Callable[[Any, dict[str, Tensor], TokenLayout], None]] = {
    "usual": usual,
    "floor": floor,
    "vlmflow": ours,
    "low memory": ours_low_memory,
    "without picture": without_picture,
}


def seconds(model: Any, tokens: int, cases: list[str], repeats: int) -> dict[str, float]:
    inputs, layout = laid_out(model, tokens)
    times: dict[str, list[float]] = {case: [] for case in cases}
    for repeat in range(repeats + 1):
        for case in cases:
            taken, _ = clocked(partial(CASES[case], model, inputs, layout), model.device.type)
            if repeat:
                times[case].append(taken)
    return {case: statistics.median(values) for case, values in times.items()}


def extra_bytes(model: Any, tokens: int, case: str) -> int:
    """Peak above what is there before, of one run."""
    small = QUESTION_TOKENS + ANSWER_TOKENS + model.config.image_seq_length + 1
    CASES[case](model, *laid_out(model, small))  # loads kernels and libraries
    inputs, layout = laid_out(model, tokens)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        CASES[case](model, inputs, layout)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the current size
    before = resident("VmRSS")
    CASES[case](model, inputs, layout)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def memory(model: Any, size: Size, tokens: int, case: str) -> int:
    if size.device != "cpu":
        return extra_bytes(model, tokens, case)
    question = json.dumps({"size": asdict(size), "tokens": tokens, "case": case})
    command = [sys.executable, __file__, "--worker", question]
    # Below this size glibc would keep freed memory for later, and the peak would depend on it.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def table(tokens: int, times: dict[str, float], peaks: dict[str, int]) -> str:
    lines = [
        f"{tokens} tokens",
        f"  {'':12}{'time':>10}{'ratio':>8}{'extra memory':>16}{'ratio':>8}",
    ]
    for case in times:
        slower, larger = times[case] / times["floor"], peaks[case] / peaks["floor"]
        mib = peaks[case] / 2**20
        lines.append(f"  {case:12}{times[case]:9.3f}s{slower:8.2f}{mib:12.0f} MiB{larger:8.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[600, 1500, 3000])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-heads", type=int, help="fewer than heads: grouped heads")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        job = json.loads(options.worker)
        print(extra_bytes(Size(**job["size"]).build(), job["tokens"], job["case"]))
        return
    size = Size(
        layers=options.layers,
        width=options.width,
        heads=options.heads,
        key_heads=options.key_heads or options.heads,
        dtype=options.dtype,
        device=options.device,
    )
    cases = list(dict.fromkeys([*options.cases, "floor"]))
    model = size.build()
    results = []
    for tokens in options.tokens:
        times = seconds(model, tokens, cases, options.repeats)
        peaks = {case: memory(model, size, tokens, case) for case in cases}
        print(table(tokens, times, peaks), flush=True)
        results.append({"tokens": tokens, "seconds": times, "extra_bytes": peaks})
    if options.json:
        facts = {
            "size": asdict(size),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "repeats": options.repeats,
            "results": results,
        }
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
