"""Signals by name: those of this folder, those of other packages, those defined anywhere."""

from __future__ import annotations

from collections.abc import Iterable

from vlmflow.errors import InputError
from vlmflow.extensions import Registry
from vlmflow.flow.signals.signal import Signal

DEFAULT_SIGNAL = "sensitivity"
"""The map that pages open with, headlines speak of and tests of trust take where nobody names one.

Of the maps with no layer to choose that share one forward and backward pass, it ranks regions best
by insertion and deletion: better than chance on all four tasks measured with ``scenes-llava``,
where the flow map is on three, and first, beside the flow map, on the one task measured with
``scenes-smolvlm`` (docs/faithfulness.md has the tables).
"""

DEFAULT_SIGNALS: tuple[str, ...] = (
    "attention",
    "saliency",
    DEFAULT_SIGNAL,
    "flow_map",
    "llava_cam",
)
"""What is measured where nobody names signals.

The first of them with one map for all layers is the one that a result is shown with, see
:func:`vlmflow.result.shown_map.shown_map`.
"""

WITHOUT_GRADIENTS: tuple[str, ...] = ("attention",)
"""Those of the default signals that need no backward pass."""

SIGNALS = Registry(Signal, noun="signal", package="vlmflow.flow.signals", group="vlmflow.signals")


def as_signals(given: Iterable[str | Signal]) -> tuple[Signal, ...]:
    """Return the signals that a user names or passes, each once.

    ``given`` holds names, with parameters in brackets (``"flow_map(layers=8)"``), or instances.
    Raises InputError for none at all, or one that cannot be found or declares what does not exist.
    """
    if isinstance(given, str):
        raise InputError(f"signals={given!r} is a text; pass a list of names: [{given!r}]")
    if not isinstance(given, Iterable):
        raise InputError(f"signals={given!r} is not a list; pass one of names and instances")
    instances = [SIGNALS.read(signal) for signal in given]
    for signal in instances:
        signal.check_parameters()
    signals = tuple(dict.fromkeys(instances))
    if not signals:
        raise InputError(f"signals is empty; there are {', '.join(SIGNALS.names())}")
    titles = [signal.title for signal in signals]
    for signal in signals:
        signal.check_declared()
        if titles.count(signal.title) > 1:
            raise InputError(
                f"two signals are called {signal.title!r}; give one of them another name in its "
                "class (name = '...')"
            )
    return signals
