"""Does compiled decoding over a static cache keep what truncation saves? Seconds of a step.

    python benchmarks/static_decoding.py                  # 24 layers, 8 pictures; CPU or GPU
    python benchmarks/static_decoding.py --backend eager  # not compiled, to look at the rest

A randomly initialised LLaVA (:mod:`random_llava`; bfloat16, SDPA) reads a prompt of many pictures
into a ``StaticCache``, untouched and without its image tokens from several layers on, and decodes.
All take turns in one process, after their graphs are compiled; medians of the steps.

step
    One token through ``model.get_compiled_call``, as ``generate`` calls it.
share
    Of the untouched step.
bytes
    What a step reads, as a share of what the untouched one does: weights of decoder and head, and
    all slots of the cache.
graphs
    How often a graph was compiled for it.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from random_llava import build, clocked, prompt_inputs
from torch import Tensor
from transformers import CompileConfig, StaticCache

from vlmflow.lvlm.model_parts import decoder_layers
from vlmflow.truncation import Truncation

SIDE, SYSTEM, USER = 336, 35, 29


class Decoding:
    """A prompt in a static cache, and its next token."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], policy: Truncation | None, room: int):
        self.model, self.policy = model, policy
        length = inputs["input_ids"].shape[1]
        self.cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + room)
        self.length, self.room = length, length + room
        output = self.run(lambda: model(**inputs, past_key_values=self.cache, logits_to_keep=1))
        self.token = output.logits[:, -1:].argmax(-1)

    def run(self, work: Any) -> Any:
        """Run something inside the truncation."""
        if self.policy is None:
            return work()
        with self.policy(self.model):
            return work()

    def step(self, config: CompileConfig, device: str) -> float:
        """Decode one token: seconds."""
        call = self.model.get_compiled_call(config)
        seen = torch.arange(self.room, device=self.token.device) <= self.length
        mask = seen[None, None, None]
        position = torch.tensor([[self.length]], device=self.token.device)

        def work() -> tuple[float, Any]:
            return clocked(
                lambda: call(
                    input_ids=self.token, attention_mask=mask, position_ids=position,
                    past_key_values=self.cache, return_dict=True,
                ),
                device,
            )  # fmt: skip

        seconds, output = self.run(work)
        self.token = output.logits[:, -1:].argmax(-1)
        self.length += 1
        return float(seconds)

    def bytes(self) -> int:
        """Bytes of keys and values, all slots."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = build(
        layers=options.layers, width=options.width, heads=options.heads, key_heads=options.heads,
        side=SIDE, dtype="bfloat16", device=options.device,
    )  # fmt: skip
    inputs = prompt_inputs(model, SYSTEM, options.pictures, USER)
    config = CompileConfig(backend=options.backend, mode=None, fullgraph=True)
    half = options.layers // 2
    ways: dict[str, Truncation | None] = {
        "untouched": None,
        f"keep 0 at {half}": Truncation(half, 0),
        "keep 25 % at 2": Truncation(2, 0.25),
        "keep 0 at 2": Truncation(2, 0),
    }
    room = options.steps + 8
    graphs, running = {}, {}
    for name, policy in ways.items():
        running[name] = Decoding(model, inputs, policy, room)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for _ in range(3):
            running[name].step(config, options.device)
        graphs[name] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.steps):
        for name, decoding in running.items():
            seconds[name].append(decoding.step(config, options.device))
    weights = sum(
        weight.nbytes
        for part in (decoder_layers(model), model.lm_head)
        for weight in part.parameters()
    )
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    tokens = inputs["input_ids"].shape[1]
    print(
        f"{tokens} tokens, {options.layers} x {options.width}, bfloat16 on {options.device}, "
        f"{options.backend}, median of {options.steps} steps"
    )
    whole = weights + running["untouched"].bytes()
    for name, decoding in running.items():
        print(
            f"  {name:18}{1000 * median[name]:8.1f} ms{median[name] / median['untouched']:7.2f}x"
            f"   bytes {(weights + decoding.bytes()) / whole:5.2f}x   graphs {graphs[name]}"
        )


if __name__ == "__main__":
    main()
