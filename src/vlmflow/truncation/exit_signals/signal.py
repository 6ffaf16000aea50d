"""The seam for exit signals: one number per prompt and layer, cheap enough to read at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlmflow.errors import InputError
from vlmflow.extensions import Extension

if TYPE_CHECKING:
    from torch import Tensor

    from vlmflow.truncation.exit_signals.view import ExitView

READS = ("hidden", "step", "attention", "logits")
"""What an exit signal can read, see :attr:`ExitSignal.reads`."""


@dataclass(frozen=True)
class ExitSignal(Extension):
    """Says how little a prompt still needs its image tokens: the larger, the sooner it may leave.

    Subclass it as a frozen dataclass whose fields are its parameters, and define :meth:`value`:

    >>> @dataclass(frozen=True)
    ... class Settled(vlmflow.ExitSignal):
    ...     '''The last token's state hardly moves any more.'''
    ...     reads = "step"
    ...
    ...     def value(self, seen):
    ...         return -seen.step.norm()
    """

    reads: ClassVar[str | tuple[str, ...]] = "hidden"
    """What it reads, beside the hidden states that every signal is given.

    ``"step"``: how the layer before moved the last token's state. ``"attention"``: the last token's
    attention at the layer before, and the values there. ``"logits"``: the last token's state
    through the model's final norm and output matrix. Several go in a tuple.
    """

    def value(self, seen: ExitView) -> Tensor:
        """Give one number of one prompt, as a tensor without axes (nothing waits for a GPU)."""
        raise NotImplementedError(f"{type(self).__name__} does not define value")

    @property
    def all_reads(self) -> tuple[str, ...]:
        """:attr:`reads` as a tuple."""
        return (self.reads,) if isinstance(self.reads, str) else tuple(self.reads)

    def check_declared(self) -> None:
        """Raise InputError for a class that declares what does not exist."""
        self.check_parameters()
        for source in self.all_reads:
            if source not in READS:
                raise InputError(
                    f"exit signal {self.known_as()} declares reads={self.reads!r}, but "
                    f"{source!r} is none of {', '.join(READS)}"
                )
