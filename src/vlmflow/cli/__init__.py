"""The command line: ``vlmflow explain``, ``generate``, ``cliff``, ``study``, ``demo``, lists.

Everything that can be checked cheaply is checked before the model is loaded, and torch is imported
only once it is needed.
"""

from __future__ import annotations

try:
    from vlmflow.cli import cliff, explain, generate, lists, sample, study, trust
    from vlmflow.cli.app import app, main
except KeyboardInterrupt:  # Ctrl-C while nothing has begun
    raise SystemExit(130) from None

__all__ = ["app", "cliff", "explain", "generate", "lists", "main", "sample", "study", "trust"]
