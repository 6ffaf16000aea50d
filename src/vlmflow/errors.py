"""Errors that a user can cause, each with one sentence that says the way out."""

from __future__ import annotations


class VlmflowError(Exception):
    """Base of every error a user can cause.

    The message is one sentence that names the thing, the value it had and the way out. The command
    line prints it unchanged, without a trace, and exits with code 2.
    """


class InputError(VlmflowError, ValueError):
    """A picture, question, answer, option, layer, signal or path that cannot be used."""


class ModelError(VlmflowError):
    """A model that is unknown or unsupported, or a directory without one."""


def reason(error: BaseException) -> str:
    """Return what an error of another library says, in one line that is worth reading.

    That is its first line; with the next one where it only announces it ("... for field 'x':").
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    end = next((number for number, line in enumerate(lines) if not line.endswith(":")), 0)
    return " ".join(lines[: end + 1])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's own errors are RuntimeErrors, one for every device."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    text = str(error).lower()
    is_torch = isinstance(error, RuntimeError) and any(word in text for word in words)
    return isinstance(error, MemoryError) or is_torch


class Note(UserWarning):
    """What a user has to know while the work goes on; the command line prints it."""


class TooFewSamples(Note):
    """A study whose samples cannot show what it asks, whatever they turn out to be."""


class DamagedStore(Note):
    """A study's file was damaged; what could be read of it was saved."""
