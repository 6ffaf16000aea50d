"""What a study will take, estimated from its first samples, which are kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vlmflow.lvlm.model import LVLM
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.run import Progress, load_model, run_study
from vlmflow.studies.truncations.sentences import many
from vlmflow.tasks.base import Task

PROBED = 20
"""Samples that are answered to estimate the time of the others."""


@dataclass(frozen=True)
class Estimate:
    """What a study takes.

    Parameters
    ----------
    samples, stored : int
        Samples in all, and those that the directory holds already.
    arms : int
        Ways in which each is answered.
    probed : int
        Samples answered to estimate the others; kept in the study.
    seconds : float or None
        For the samples that are left, at the speed of the probed ones; None where none are left.
    weights, peak : int or None
        Bytes of the model's weights, and the largest amount of GPU memory while answering; None
        where it is not on a GPU.
    """

    samples: int
    stored: int
    arms: int
    probed: int
    seconds: float | None
    weights: int
    peak: int | None

    def lines(self) -> list[str]:
        """Say it, a line for each part."""
        answers = self.samples * self.arms
        lines = [
            f"answers     {many(self.samples, 'sample')} x {many(self.arms, 'arm')} = {answers:,}, "
            f"of which {(self.stored + self.probed) * self.arms:,} are there"
        ]
        if self.seconds is None:
            lines.append("time        nothing is left to answer")
        else:
            lines.append(
                f"time        about {_duration(self.seconds)} for the {many(self._left, 'sample')} "
                f"that are left, one worker at the speed of the {self.probed} just answered"
            )
        peak = "" if self.peak is None else f", {self.peak / 1e9:.2f} GB at most while answering"
        lines.append(f"memory      {self.weights / 1e9:.2f} GB of weights for each worker{peak}")
        return lines

    @property
    def _left(self) -> int:
        return self.samples - self.stored - self.probed


def _duration(seconds: float) -> str:
    """Return ``"40 s"``, ``"12 min"`` or ``"3.5 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _Enough(Exception):  # noqa: N818 (it ends a probe, which is no error)
    """Ends a run after the samples that were to be probed."""


def estimate_study(
    plan: Plan,
    directory: Path,
    *,
    vlm: LVLM | None = None,
    task: Task | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Estimate:
    """Answer the first samples that a study lacks, and estimate the rest.

    What was answered is in the study's store, so nothing is done twice. Prefill times are not in
    the estimate.

    Raises
    ------
    InputError, ModelError
        As :func:`vlmflow.studies.truncations.run.run_study`.
    """
    model = load_model(plan) if vlm is None else vlm
    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    last = Progress(0, plan.samples + plan.calibration, 0, None)
    began = time.monotonic()
    spent = 0.0

    def watch(now: Progress) -> None:
        nonlocal last, spent, began
        if now.new > last.new:  # reading what is stored is not answering
            spent += time.monotonic() - began
        last, began = now, time.monotonic()
        if progress is not None:
            progress(now)
        if now.new >= PROBED:
            raise _Enough

    with contextlib.suppress(_Enough):
        run_study(plan, directory, vlm=model, task=task, progress=watch, most=PROBED)
    stored = last.done - last.new
    left = last.total - last.done
    return Estimate(
        samples=last.total,
        stored=stored,
        arms=len(plan.arms(model.num_layers)),
        probed=last.new,
        seconds=spent / last.new * left if last.new and left else None,
        weights=sum(weights.nbytes for weights in model.model.parameters()),
        peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
