"""Decoders of pictures that keep to themselves what they think of a broken file."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from PIL import _imaging

_lock = threading.RLock()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow's warnings, and what libtiff writes to the process's stderr, off the terminal.

    A broken TIFF makes libtiff complain about every strip. What matters of it Pillow raises.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Called with None, each returns the function that it has replaced.
        before = [(set_function, set_function(None)) for set_function in _libtiff()]
        try:
            yield
        finally:
            for set_function, function in before:
                set_function(function)


@cache
def _libtiff() -> tuple[Any, ...]:
    """Find how libtiff's functions for errors and warnings are set, where Pillow comes with it."""
    try:
        library = ctypes.CDLL(_imaging.__file__)  # looks into what it is linked to, too
        found = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler)
    except (AttributeError, OSError, TypeError):
        return ()
    for function in found:
        function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return found
