"""The rows of imported runs: one run on one task."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.statistics.intervals import Estimate
from vlmflow.studies.imported.arms import ImportedArm


@dataclass(frozen=True)
class ImportedRow:
    """One run on one task.

    Parameters
    ----------
    task : str
        Which task.
    arm : ImportedArm
        Which run.
    count : int
        Samples; the same ones in every run.
    score : Estimate
        Mean of the task's metric.
    agreement : Estimate
        Share of answers that equal the untouched run's.
    difference : Estimate or None
        Score minus the untouched run's, over the same samples; None for the untouched run.
    p_value, adjusted : float or None
        Of the two-sided test whether the difference is 0 (sign flips), alone and corrected by Holm
        for all runs on all tasks together.
    verdict : str
        ``"safe"``: the loss is shown to be at most what is allowed, corrected by Holm for all
        truncations on all tasks. ``"not safe"``: the difference's interval lies below that, and the
        difference stands after correction. ``"cannot tell"``: neither. Empty for a control.
    against : tuple of (str, Estimate)
        Score minus that of each control of random tokens, over the same samples.
    """

    task: str
    arm: ImportedArm
    count: int
    score: Estimate
    agreement: Estimate
    difference: Estimate | None = None
    p_value: float | None = None
    adjusted: float | None = None
    verdict: str = ""
    against: tuple[tuple[str, Estimate], ...] = ()
