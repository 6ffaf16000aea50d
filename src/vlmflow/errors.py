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


class Note(UserWarning):
    """What a user has to know while the work goes on; the command line prints it."""


class TooFewSamples(Note):
    """A study whose samples cannot show what it asks, whatever they turn out to be."""


class DamagedStore(Note):
    """A study's file was damaged; what could be read of it was saved."""
