"""What a study reports of each arm on each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmflow.statistics.intervals import Estimate
from vlmflow.studies.truncations.arms import Arm


@dataclass(frozen=True)
class ArmSummary:
    """One arm on one split, over the samples that neither it nor the untouched model failed on.

    Parameters
    ----------
    arm : Arm
        Which.
    split : str
        One of :data:`vlmflow.tasks.base.SPLITS`.
    count, failed : int
        Samples, and those that are left out because this arm or the untouched model failed.
    score : Estimate
        Mean of the task's score.
    difference : Estimate or None
        Score minus the untouched model's, over the same samples; None for the untouched model.
    p_value : float or None
        Of the test whether the loss is at most the plan's ``max_loss``
        (:func:`~vlmflow.statistics.loss_tests.loss_p_value`); None for the untouched model.
    agreement : Estimate
        Share of answers that equal the untouched model's word for word; EffiVLM-Bench (2025) calls
        it loyalty.
    figures : mapping
        The task's own figures.
    flops_share : float or None
        Operations of the whole prefill as a share of the untouched prompt's; None where the model's
        configuration does not tell them.
    formula_share : float
        The same by FastV's formula, for the decoder alone.
    image_tokens : float
        That an average layer sees, mean over samples.
    prefill, prefill_share : float or None
        Median seconds of a prefill, and median ratio to the untouched one; None: not timed.
    """

    arm: Arm
    split: str
    count: int
    failed: int
    score: Estimate
    difference: Estimate | None
    p_value: float | None
    agreement: Estimate
    figures: Mapping[str, float]
    flops_share: float | None
    formula_share: float
    image_tokens: float
    prefill: float | None
    prefill_share: float | None

    @property
    def cost_share(self) -> float:
        """Operations of the whole prefill; where they are not known, FastV's formula."""
        return self.formula_share if self.flops_share is None else self.flops_share


@dataclass(frozen=True)
class Failure:
    """A sample that some arms failed on."""

    # Split and key of the sample
    split: str
    key: str
    arms: tuple[str, ...]  # Names of the arms
    reason: str  # Why the first of them failed
