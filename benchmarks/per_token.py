"""What explaining every token of an answer costs, against one explanation of the whole answer.

    python benchmarks/per_token.py                     # scenes-llava, float32
    python benchmarks/per_token.py --dtype bfloat16 --tokens 20

A token's maps need a backward pass of its own. The ways, each once per round and in turns:

whole answer
    ``vlm.explain(per_token=False)``: one forward and one backward pass, and what stands beside it.
every token
    ``vlm.explain(per_token=True)``: one forward pass, a backward pass per token.
floor
    One forward pass, and a backward pass per token to the first layer's input, nothing recorded.
floor, vectorised
    The same with all backward passes as one (``is_grads_batched``): equal gradients, which is
    checked. What it takes less is all that batching backward passes could gain.

Times are this process's own CPU seconds on a CPU (else wall-clock), the median of all rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vlmflow
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.prompt import Prompt
from vlmflow.tasks.registry import find_task


def answer_logprobs(vlm: vlmflow.LVLM, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Run the prompt once: the first layer's input, and the (T,) scores that depend on it."""
    leaves: list[Tensor] = []

    def start(_layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        leaves.append((args[0] if args else kwargs["hidden_states"]).detach().requires_grad_())
        if args:
            return (leaves[0], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": leaves[0]}

    handle = vlm.decoder_layers[0].register_forward_pre_hook(start, with_kwargs=True)
    try:
        rows = torch.from_numpy(prompt.layout.answer_rows).to(vlm.device)
        logits = logits_at(vlm.model, prompt.inputs, rows)[0]
    finally:
        handle.remove()
    ids = torch.tensor(prompt.answer_ids, device=logits.device)
    return leaves[0], logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]


def floor(vlm: vlmflow.LVLM, prompt: Prompt, *, vectorised: bool) -> Tensor:
    """Return the gradient of every answer token: (T, 1, N, channels)."""
    with as_found(vlm.model, frozen=True), torch.enable_grad():
        leaf, scores = answer_logprobs(vlm, prompt)
        units = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
        if vectorised:
            return torch.autograd.grad(scores, leaf, units, is_grads_batched=True)[0]
        return torch.stack(
            [torch.autograd.grad(scores, leaf, unit, retain_graph=True)[0] for unit in units]
        )


def seconds(ways: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Time every way in turns, after a round that does not count: medians."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    vlm = vlmflow.load(options.model, dtype=options.dtype)
    (sample,) = find_task("scenes-caption").samples("test", 1)
    question = vlm.prepare(sample.pictures, sample.question)
    ids = vlm.generate_ids(question, max_new_tokens=options.tokens)
    prompt = vlm.with_answer(question, ids)
    one, all_at_once = (floor(vlm, prompt, vectorised=way) for way in (False, True))
    difference = float((one - all_at_once).abs().max() / one.abs().max())

    def explained(per_token: bool) -> Callable[[], object]:
        return lambda: vlm.explain(sample.pictures, sample.question, ids, per_token=per_token)

    times = seconds(
        {
            "whole answer": explained(per_token=False),
            "every token": explained(per_token=True),
            "floor": lambda: floor(vlm, prompt, vectorised=False),
            "floor, vectorised": lambda: floor(vlm, prompt, vectorised=True),
        },
        vlm.device.type,
        options.rounds,
    )
    print(
        f"{options.model}, {options.dtype}, {vlm.device.type}, {torch.get_num_threads()} threads: "
        f"{len(prompt.layout)} positions, {len(ids)} answer tokens; gradients of the two floors "
        f"differ by {difference:.1e} of the largest"
    )
    for name, value in times.items():
        share = value / times["whole answer"] / len(ids)
        print(f"{name:18} {value:7.3f} s   {share:5.2f} whole answers a token")


if __name__ == "__main__":
    main()
