"""One answer, with what it cost: time of the prefill, of every further token, and end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from vlmflow.lvlm.model import LVLM, Truncating
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import answer_text


class _Clock(StoppingCriteria):
    """Never stops anything; notes when each token was made."""

    def __init__(self, length: int, on_token: Callable[[Sequence[int]], None] | None) -> None:
        self.ticks: list[float] = []
        self._length, self._on_token = length, on_token

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_kwargs: Any) -> Any:
        _wait(input_ids.device)
        self.ticks.append(time.perf_counter())
        if self._on_token is not None:
            self._on_token(input_ids[0, self._length :].tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class TimedAnswer:
    """An answer and what it cost."""

    answer: str
    ids: tuple[int, ...]  # Its tokens, without the end token
    # Seconds until the first token: vision tower, projector, decoder over the prompt, ranking
    prefill: float
    per_token: float | None  # Mean seconds of each further token; None if there was none
    end_to_end: float  # Seconds of the whole call
    cached_tokens: tuple[int, ...]  # Prompt tokens that each layer took, counted in the cache
    cache_bytes: int  # Bytes of keys and values at the end
    # Layer from which image tokens are missing; the number of layers where none are
    exit_layer: int


def timed_answer(
    vlm: LVLM,
    prompt: Prompt,
    truncation: Truncating | None,
    *,
    max_new_tokens: int = 64,
    on_token: Callable[[Sequence[int]], None] | None = None,
) -> TimedAnswer:
    """Answer greedily after one token's warm-up, and time it; None: the untouched model.

    ``on_token`` is called with the ids so far after each token, its end included; what it takes
    counts for the next token, so that it should be short.
    """
    vlm.generate_ids(prompt, max_new_tokens=1, truncation=truncation)
    clock = _Clock(len(prompt.layout), on_token)
    _wait(vlm.device)
    start = time.perf_counter()
    with nullcontext() if truncation is None else truncation(vlm.model) as run:
        ids, output = vlm.generate_with(
            prompt,
            max_new_tokens=max_new_tokens,
            options={"stopping_criteria": StoppingCriteriaList([clock])},
        )
    _wait(vlm.device)
    end = time.perf_counter()
    first, last, further = clock.ticks[0], clock.ticks[-1], len(clock.ticks) - 1
    layers = output.past_key_values.layers
    cached = [layer for layer in layers if isinstance(getattr(layer, "keys", None), torch.Tensor)]
    if run is not None:
        held = tuple(run.tokens_per_layer[0].tolist())
    else:  # the last token is never fed back, so the cache does not hold its keys
        held = tuple(int(layer.get_seq_length()) - further for layer in cached)
    return TimedAnswer(
        answer=answer_text(vlm.processor.tokenizer, ids),
        ids=ids,
        prefill=first - start,
        per_token=(last - first) / further if further else None,
        end_to_end=end - start,
        cached_tokens=held,
        exit_layer=int(run.exit_layers[0]) if run is not None else vlm.num_layers,
        cache_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in cached),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
