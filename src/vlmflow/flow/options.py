"""The options of an explanation: checked once, passed on as one, and kept with the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmflow.errors import InputError
from vlmflow.flow.axes import OF
from vlmflow.flow.signals.registry import DEFAULT_SIGNALS, WITHOUT_GRADIENTS, as_signals
from vlmflow.flow.signals.signal import Signal
from vlmflow.flow.targets import check_scalar
from vlmflow.lvlm.words import Target, check_words
from vlmflow.parameters import check_integer


@dataclass(frozen=True)
class ExplainOptions:
    """How an answer is explained.

    Parameters
    ----------
    signals : iterable of str or Signal, optional
        Maps that are wanted: names, with parameters in brackets where they are not the defaults
        (``"flow_map(layers=8)"``), or instances of subclasses of :class:`vlmflow.Signal`. Held as
        instances. Left out: attention, saliency, sensitivity, flow map and LLaVA-CAM, without
        gradients attention alone.
    target : str, int or range, optional
        Words that are explained in place of the whole answer: by their text, a token's number
        (counted from 1) or a range of numbers.
    of : str
        The text that these words belong to: ``"answer"``, ``"question"`` (all of it without a
        target), or ``"prompt"``: any text after the pictures.
    scalar : str
        ``"logprob"``, ``"logit"`` (the paper's) or ``"margin"``.
    per_token : bool
        Explain each answer token beside the whole answer.
    max_new_tokens : int
        Longest answer to generate where none is given.
    low_memory : bool
        Recompute layers in the backward pass instead of keeping their activations.
    gradients : bool
        False: no backward pass, and attention alone where no signals are named. It takes a fraction
        of the time and memory, and is the way for models through which no gradient passes.

    Raises
    ------
    InputError
        For an option that cannot be used.
    """

    signals: Iterable[str | Signal] | None = None
    target: Target | None = None
    of: str = OF[0]
    scalar: str = "logprob"
    per_token: bool = True
    max_new_tokens: int = 64
    low_memory: bool = False
    gradients: bool = True

    def __post_init__(self) -> None:
        given = self.signals
        if given is None:
            given = DEFAULT_SIGNALS if self.gradients else WITHOUT_GRADIENTS
        signals = as_signals(given)
        object.__setattr__(self, "signals", signals)
        differentiated = [s.title for s in signals if s.needs_gradients]
        if differentiated and not self.gradients:
            raise InputError(
                f"signals {', '.join(differentiated)} are made of gradients, but gradients=False; "
                "leave one of the two out"
            )
        if self.target is not None:
            check_words(self.target)
        if self.of not in OF:
            raise InputError(f"of={self.of!r} is none of {', '.join(map(repr, OF))}")
        check_scalar(self.scalar)
        check_integer("max_new_tokens", self.max_new_tokens, least=1)

    @property
    def named(self) -> dict[str, Signal]:
        """The signals by the names of their maps: with parameters where two share a name."""
        signals = as_signals(self.signals or ())
        names = [signal.known_as() for signal in signals]
        return {
            signal.title if names.count(name) > 1 else name: signal
            for name, signal in zip(names, signals, strict=True)
        }

    def check_model(self, layers: nn.ModuleList) -> None:
        """Raise InputError for a signal that does not fit a model's decoder layers."""
        for signal in self.named.values():
            signal.check_model(layers)

    def to_json(self) -> dict[str, Any]:
        """Return the options as a dictionary that JSON can hold."""
        target = list(self.target) if isinstance(self.target, range) else self.target
        signals = [signal.to_json() for signal in self.named.values()]
        return {**vars(self), "signals": signals, "target": target}
