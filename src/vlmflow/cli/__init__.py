"""The command line: ``vlmflow explain``, ``vlmflow generate`` and ``vlmflow demo``.

Everything that can be checked cheaply is checked before the model is loaded, and torch is imported
only once it is needed.
"""

from __future__ import annotations

from vlmflow.cli import explain, generate
from vlmflow.cli.app import app, main

__all__ = ["app", "explain", "generate", "main"]
