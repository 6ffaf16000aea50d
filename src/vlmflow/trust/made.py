"""A sequence whose items are made when they are asked for: all at once may not fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Made(Sequence[Item], Generic[Item]):
    """``length`` items; ``make`` gives the one of each number, anew each time."""

    length: int
    make: Callable[[int], Item]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        numbers = range(self.length)[index]  # raises IndexError, by which iterating ends
        return self.make(numbers) if isinstance(numbers, int) else [*map(self.make, numbers)]
