"""The command line: ``vlmflow explain``, ``trust``, ``cliff``, ``study``, ``faithfulness``, lists.

Everything that can be checked cheaply is checked before the model is loaded, and torch is imported
only once it is needed.
"""

from __future__ import annotations

try:
    from vlmflow.cli import (
        budget,
        certify,
        cliff,
        compare,
        env,
        explain,
        export_policy,
        faithfulness,
        generate,
        lists,
        reproduce,
        sample,
        serve,
        study,
        trust,
    )
    from vlmflow.cli.app import app, main
except KeyboardInterrupt:  # Ctrl-C while nothing has begun
    raise SystemExit(130) from None

__all__ = [
    "app",
    "budget",
    "certify",
    "cliff",
    "compare",
    "env",
    "explain",
    "export_policy",
    "faithfulness",
    "generate",
    "lists",
    "main",
    "reproduce",
    "sample",
    "serve",
    "study",
    "trust",
]
