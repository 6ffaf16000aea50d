"""Signals by name: those of this folder, those of other packages, those defined anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmflow.errors import InputError
from vlmflow.extensions import Registry
from vlmflow.flow.signals.signal import Signal

DEFAULT_SIGNALS: tuple[str, ...] = ("attention", "saliency", "flow_map", "llava_cam")

SIGNALS = Registry(Signal, noun="signal", package="vlmflow.flow.signals", group="vlmflow.signals")


def as_signals(given: Iterable[str | Signal]) -> tuple[Signal, ...]:
    """Return the signals that a user names or hands over, each once.

    Parameters
    ----------
    given : iterable of str or Signal
        Names (with parameters in brackets, ``"flow_map(layers=8)"``), or instances.

    Raises
    ------
    InputError
        For none at all, or one that cannot be found or declares what does not exist.
    """
    if isinstance(given, str):
        raise InputError(f"signals={given!r} is a text; pass a list of names: [{given!r}]")
    if not isinstance(given, Iterable):
        raise InputError(f"signals={given!r} is not a list; pass one of names and instances")
    read = [SIGNALS.read(signal) for signal in given]
    for signal in read:
        signal.check_parameters()
    signals = tuple(dict.fromkeys(read))
    if not signals:
        raise InputError(f"signals is empty; there are {', '.join(SIGNALS.names())}")
    for signal in signals:
        signal.check_declared()
    titles = [signal.title for signal in signals]
    for title in titles:
        if titles.count(title) > 1:
            raise InputError(
                f"two signals are called {title!r}; give one of them another name in its class "
                "(name = '...')"
            )
    return signals


def named_signals(signals: Sequence[Signal]) -> dict[str, Signal]:
    """Give every signal the name of its map: its own, with parameters where two share it."""
    names = [signal.known_as() for signal in signals]
    return {
        signal.title if names.count(name) > 1 else name: signal
        for name, signal in zip(names, signals, strict=True)
    }
