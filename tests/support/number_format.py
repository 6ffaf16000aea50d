"""The number format in which bundled models are quick on this machine."""

from __future__ import annotations

import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def _lacks_bfloat16() -> bool:
    """Whether this is an x86 processor without instructions for bfloat16, which is slow there."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux: nobody says
        return False
    return platform.machine() == "x86_64" and not ("avx512_bf16" in flags or "amx_bf16" in flags)


QUICK = "float32" if _lacks_bfloat16() else None
"""``dtype`` for tests to which the format does not matter; None: that of the weights."""

QUICKLY = () if QUICK is None else ("--dtype", QUICK)
"""The same as options of a command."""


def quick_by_default(monkeypatch: Any) -> None:
    """Open models in that format where nobody names another: for pages that run as they stand."""
    if QUICK is not None:
        from vlmflow.lvlm import loading  # here, for torch: the app's server is tested without it

        asked_for = loading._dtype
        monkeypatch.setattr(loading, "_dtype", lambda dtype: asked_for(dtype or QUICK))


def quick_training(monkeypatch: Any) -> None:
    """Let training compute in float32 where bfloat16 is slow; what it writes is as ever."""
    if QUICK is not None:
        monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())
