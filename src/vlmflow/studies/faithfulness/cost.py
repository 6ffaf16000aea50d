"""What a map costs: its passes and seconds, beside one plain forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.prompt import Prompt
from vlmflow.studies.faithfulness.maps import explained


@dataclass
class Passes:
    """Passes of prompts through a model: a batch of four counts four times.

    Branches without image tokens, which ride along with a whole pass, do not count.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(model: Any) -> Iterator[Passes]:
    """Count the passes through a model for the length of a block."""
    passes = Passes()

    def after(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        logits = output.logits
        passes.forward += len(logits)
        if logits.requires_grad:
            rows = len(logits)

            def back(_gradient: Any) -> None:
                passes.backward += rows

            logits.register_hook(back)

    handle = model.register_forward_hook(after, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def costs(
    vlm: LVLM,
    prompt: Prompt,
    question: str,
    signals: Mapping[str, Signal],
    *,
    low_memory: bool = False,
) -> dict[str, dict[str, float]]:
    """Explain an answered prompt with each signal alone.

    Returns
    -------
    dict of str to dict
        Of every signal ``forward`` and ``backward`` passes, ``seconds``, and ``plain``, the seconds
        of one forward pass with the same prompt and answer. Every explanation includes the pass
        without the picture.
    """
    plain = min(_plain_seconds(vlm, prompt) for _ in range(3))
    measured = {}
    for name, signal in signals.items():
        explain = partial(
            explained, vlm, prompt, question, {name: signal}, per_token=False,
            low_memory=low_memory,
        )  # fmt: skip
        explain()  # warm
        with counted(vlm.model) as passes:
            began = time.perf_counter()
            explain()
            seconds = time.perf_counter() - began
        measured[name] = {
            "forward": float(passes.forward),
            "backward": float(passes.backward),
            "seconds": seconds,
            "plain": plain,
        }
    return measured


def _plain_seconds(vlm: LVLM, prompt: Prompt) -> float:
    rows = torch.from_numpy(prompt.layout.answer_rows).to(vlm.device)
    began = time.perf_counter()
    with as_found(vlm.model), torch.no_grad():
        logits_at(vlm.model, prompt.inputs, rows).sum().item()  # waits for the device
    return time.perf_counter() - began
