"""Work on the next items in a thread while the model runs on those before."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vlmflow.tasks.base import TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample as the model takes it, or what is wrong with it."""

    sample: TaskSample
    prompt: Prompt | None
    error: Exception | None = None

    @property
    def ready(self) -> Prompt:
        """The prompt; what is wrong with it is raised."""
        if self.prompt is None:
            raise self.error or AssertionError("neither a prompt nor an error")
        return self.prompt


def ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], count: int
) -> Iterator[tuple[_Item, _Result]]:
    """Give every item with what ``work`` makes of it, in order; ``count`` of them beforehand.

    The items themselves are drawn in the caller's thread: a task may hold what belongs to it.
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    pool = ThreadPoolExecutor(1, "vlmflow-ahead")
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > count:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def prepare(vlm: LVLM, sample: TaskSample) -> Prepared:
    """Prepare one sample; what goes wrong is part of the result."""
    try:
        return Prepared(sample, vlm.prepare(sample.pictures, sample.question))
    except Exception as error:
        return Prepared(sample, None, error)


class Preparer:
    """Prepares samples beside a running model, with a copy of its processor.

    Tokenizers cannot be used by two threads at once. A processor that cannot be copied makes the
    model's thread prepare.
    """

    def __init__(self, vlm: LVLM) -> None:
        self._vlm, self.beside = vlm, True
        try:
            processor = copy.deepcopy(vlm.processor)
        except Exception:  # whatever a processor holds; it is only slower then
            self.beside = False
        else:
            self._vlm = copy.copy(vlm)
            self._vlm.processor = processor

    def prepare(self, sample: TaskSample) -> Prepared:
        """Prepare one sample with this copy."""
        return prepare(self._vlm, sample)

    def ahead(
        self, work: Callable[[_Item], _Result], items: Iterable[_Item], count: int = 1
    ) -> Iterator[tuple[_Item, _Result]]:
        """Do work that prepares samples, in a thread of its own where that is possible."""
        if self.beside:
            yield from ahead(work, items, count)
        else:
            yield from ((item, work(item)) for item in items)
