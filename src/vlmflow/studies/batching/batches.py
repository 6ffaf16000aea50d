"""Run prompts in batches: which go together, and what to do where a batch fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

from vlmflow.errors import is_out_of_memory
from vlmflow.lvlm.batch_size import Batch, BatchSize
from vlmflow.lvlm.memory import free_memory, release, watched
from vlmflow.studies.batching.ahead import Prepared

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Work = Callable[[Sequence[Prepared]], Sequence[_Result]]
"""What is done with prepared samples at once: a result for each, or an error."""

WINDOW = 32
"""Samples that are prepared before batches of similar lengths are made of them."""


def windows(items: Iterable[_Item], size: Batch) -> Iterator[list[_Item]]:
    """Take items by :data:`WINDOW`, the last ones maybe fewer; one by one for a batch of one."""
    rest, at_once = iter(items), 1 if size == 1 else WINDOW
    while window := list(islice(rest, at_once)):
        yield window


class Batches:
    """Puts prepared samples into batches, and runs them.

    Parameters
    ----------
    size : int or "auto"
        Prompts at once.
    device : torch.device
        Where the model's inputs go: its memory decides how many prompts are "auto".
    """

    def __init__(self, size: Batch, device: torch.device) -> None:
        self.given, self.device = size, device
        self.size = None if size == "auto" else BatchSize(size)

    def plan(self, prepared: Sequence[Prepared], work: Work[_Result]) -> list[list[int]]:
        """Say which samples go together, by their places; what could not be prepared, alone.

        The first time, where nobody said how many, the first prompt is run once to see how much
        memory one takes, and its result is forgotten. A single prompt is a batch in any case.
        """
        lengths = {
            place: len(item.prompt.layout)
            for place, item in enumerate(prepared)
            if item.prompt is not None
        }
        alone = [[place] for place in range(len(prepared)) if place not in lengths]
        if not lengths or (self.size is None and len(lengths) == 1):
            return alone + [[place] for place in lengths]
        if self.size is None:
            place, tokens = next(iter(lengths.items()))
            self.size = self._estimate(prepared[place], tokens, work)
        places = list(lengths)
        batches = self.size.batches(list(lengths.values()))
        return alone + [[places[number] for number in batch] for batch in batches]

    def run(self, work: Work[_Result], batch: Sequence[Prepared]) -> list[_Result | Exception]:
        """Run a batch; whatever goes wrong with a sample is its result.

        Where memory has run out, the batch is halved, and so are those to come; any other error is
        looked for in each sample alone.
        """
        good = [item for item in batch if item.error is None]
        if len(good) < len(batch):
            results = iter(self.run(work, good))
            return [next(results) if item.error is None else item.error for item in batch]
        if not batch:
            return []
        try:
            return list(work(batch))
        except Exception as raised:
            error = raised.with_traceback(None)  # whose frames hold the tensors
        if len(batch) == 1:
            return [error]
        parts = [[item] for item in batch]
        if is_out_of_memory(error):
            release(self.device)
            if self.size is not None:
                longest = max(len(item.ready.layout) for item in batch)
                self.size = self.size.halved(len(batch), longest)
            half = len(batch) // 2
            parts = [list(batch[:half]), list(batch[half:])]
        return [result for part in parts for result in self.run(work, part)]

    def _estimate(self, prepared: Prepared, tokens: int, work: Work[_Result]) -> BatchSize:
        with watched(self.device) as growth:
            results = self.run(work, [prepared])
        taken = None if isinstance(results[0], Exception) else growth.bytes
        return BatchSize.measured(tokens, taken, free_memory(self.device))
