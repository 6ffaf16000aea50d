"""Exit signals by name: those of this folder, those of other packages, those defined anywhere."""

from __future__ import annotations

from vlmflow.errors import InputError
from vlmflow.extensions import Registry
from vlmflow.truncation.exit_signals.signal import ExitSignal

EXIT_SIGNALS = Registry(
    ExitSignal,
    noun="exit signal",
    package="vlmflow.truncation.exit_signals",
    group="vlmflow.exit_signals",
)


def as_exit_signal(given: object) -> ExitSignal:
    """Return the exit signal that a user names or hands over.

    Raises
    ------
    InputError
        If it cannot be found, says nothing, or declares to read what does not exist.
    """
    signal = EXIT_SIGNALS.read(given)
    if type(signal).value is ExitSignal.value:
        raise InputError(
            f"exit signal {signal.known_as()!r} says nothing: define value(self, seen) in its class"
        )
    signal.check_declared()
    return signal
