"""Who does the work of a study: this process, or several on Ray."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vlmflow.errors import InputError
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.run import Progress, run_study


def run_with(
    workers: str | None,
    plan: Plan,
    directory: Path,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Run a study, or what is missing of it; see :func:`vlmflow.studies.truncations.run.run_study`.

    ``workers`` is None for this process, ``"ray"`` for one Ray worker per GPU (or two without any),
    ``"ray:N"`` for N.

    Raises
    ------
    InputError
        For any other workers.
    """
    if workers is None:
        run_study(plan, directory, progress=progress)
        return
    match = re.fullmatch(r"ray(?::([1-9]\d{0,3}))?", workers)
    if match is None:
        raise InputError(f"workers={workers!r} is unknown; give ray, or ray:4 for four workers")
    from vlmflow.studies.truncations.ray_workers import run_on_ray

    count = match.group(1)
    run_on_ray(plan, directory, None if count is None else int(count), progress)
