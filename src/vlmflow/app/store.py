"""What was uploaded and measured, under names that nobody can guess, for as long as it is used."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


@dataclass
class _Entry(Generic[Kept]):
    value: Kept
    size: int
    used: float


class Store(Generic[Kept]):
    """Things in memory by unguessable names; what is old, or too much, is forgotten.

    Parameters
    ----------
    most_bytes : int
        Of all things together. The one that was used least recently goes first.
    seconds : float
        After which a thing that nobody used is gone.
    clock : callable
        Gives the time in seconds.
    """

    def __init__(
        self, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_bytes, self._seconds, self._clock = most_bytes, seconds, clock
        self._entries: OrderedDict[str, _Entry[Kept]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, value: Kept, size: int) -> str:
        """Keep a thing of ``size`` bytes; returns its name."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._entries[name] = _Entry(value, size, self._clock())
            self._forget()
        return name

    def get(self, name: str) -> Kept | None:
        """Return a thing and keep it for longer; None if there is none of this name any more."""
        with self._lock:
            self._forget()
            entry = self._entries.get(name)
            if entry is None:
                return None
            entry.used = self._clock()
            self._entries.move_to_end(name)
            return entry.value

    def resize(self, name: str, size: int) -> None:
        """Note that a thing has grown or shrunk."""
        with self._lock:
            if name in self._entries:
                self._entries[name].size = size
            self._forget()

    def drop(self, name: str) -> None:
        """Forget a thing."""
        with self._lock:
            self._entries.pop(name, None)

    def _forget(self) -> None:
        latest = self._clock() - self._seconds
        total = sum(entry.size for entry in self._entries.values())
        # In the order of their last use; the newest stays, however large it is.
        for name, entry in list(self._entries.items())[:-1]:
            if entry.used >= latest and total <= self._most_bytes:
                return
            total -= entry.size
            del self._entries[name]
        for name, entry in list(self._entries.items()):
            if entry.used < latest:
                del self._entries[name]
