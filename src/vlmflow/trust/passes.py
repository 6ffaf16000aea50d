"""Forward passes over many pictures, or subsets of tokens: as many to a pass as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from vlmflow.errors import is_out_of_memory
from vlmflow.lvlm.batch_size import Batch, BatchSize, check_batch
from vlmflow.lvlm.memory import free_memory, release, watched

_Result = TypeVar("_Result")

LOW_MEMORY = 4
"""Pictures to a pass where less memory is to be taken."""


class Passes:
    """Says how many items go to a forward pass, and runs the passes.

    What was learned about memory, from the first pass or where it ran out, holds for all later
    passes: items of one kind share one of these.

    Parameters
    ----------
    batch : int or "auto"
        Items to a pass; "auto": as many as memory holds, by what the first pass takes, of one item.
    device : torch.device
        Where the model's inputs go: its memory decides how many items are "auto".

    Raises
    ------
    InputError
        For anything but ``"auto"`` and integers from 1 on.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        batch = check_batch(batch)
        self.device = device
        self.size = None if batch == "auto" else BatchSize(batch)

    def over(
        self, count: int, tokens: int, work: Callable[[range], _Result]
    ) -> Iterator[tuple[range, _Result]]:
        """Give the numbers of the items of every pass, and what ``work`` makes of them.

        Where memory runs out, the pass is halved, and so are those to come. For a single item the
        error is raised as it is.

        Parameters
        ----------
        count : int
            Items in all.
        tokens : int
            Length of their prompts.
        work : callable
            Runs a pass over the items of some numbers. Where memory has run out it is called again,
            with fewer.
        """
        start = 0
        while start < count:
            items = range(start, min(count, start + self.room(tokens)))
            try:
                result = self._measured(items, tokens, work)
            except Exception as error:
                if len(items) == 1 or not is_out_of_memory(error):
                    raise
            else:
                yield items, result
                start = items.stop
                continue
            # Only here are the frames gone that the error holds, with their tensors.
            assert self.size is not None
            self.size = self.size.halved(len(items), tokens)
            release(self.device)

    def room(self, tokens: int) -> int:
        """Return how many items with prompts of a length go to a pass, by what is known now."""
        return 1 if self.size is None else self.size.room(tokens)

    def _measured(self, items: range, tokens: int, work: Callable[[range], _Result]) -> _Result:
        """Run a pass; where nobody knows yet what one takes, see it."""
        if self.size is not None:
            return work(items)
        with watched(self.device) as growth:
            result = work(items)
        self.size = BatchSize.measured(tokens, growth.bytes, free_memory(self.device))
        return result
