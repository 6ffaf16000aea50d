"""How much memory there is, and how much a piece of work took."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


class Growth:
    """Bytes that a block took at most beyond what was taken before it; None: unknown."""

    def __init__(self) -> None:
        self.bytes: int | None = None


@contextmanager
def watched(device: torch.device) -> Iterator[Growth]:
    """Watch how much memory a block takes on a device; on a CPU only Linux tells."""
    growth = Growth()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield growth
        growth.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    started = _reset_peak() if device.type == "cpu" else None
    yield growth
    peak = None if started is None else _status("VmHWM")
    if started is not None and peak is not None:
        growth.bytes = max(peak - started, 0)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that work on a device can still take; None: unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(unused)
    if device.type != "cpu":
        return None
    limits = [value for value in (_of_machine(), _of_container()) if value is not None]
    return min(limits, default=None)


def release(device: torch.device) -> None:
    """Give back what a device keeps for later, so that a smaller piece of work can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _reset_peak() -> int | None:
    """Have Linux count this process's peak anew; return the bytes it takes now."""
    try:
        (_PROC / "self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    return _kilobytes(_PROC / "self/status", name)


def _of_machine() -> int | None:
    return _kilobytes(_PROC / "meminfo", "MemAvailable")


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def _of_container() -> int | None:
    """Return what a container's limit leaves, where there is one (cgroup version 2)."""
    try:
        group = re.search(r"^0::(.*)$", (_PROC / "self/cgroup").read_text(), re.MULTILINE)
        folder = _CGROUP / (group.group(1).lstrip("/") if group else "")
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    # The cache of files counts as used but gives way; so this errs towards too little.
    return max(int(limit) - used, 0) if limit.isdigit() else None
