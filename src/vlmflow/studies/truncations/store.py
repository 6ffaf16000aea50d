"""What a study of truncations stores: one row per sample and arm, and times of prefills."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.studies.samples import StoredSample
from vlmflow.studies.store_kind import StoreKind


@dataclass(frozen=True)
class StoredResult:
    """What one arm made of one sample."""

    id: str  # Hash of everything that can change it
    answer: str | None  # None where it failed
    failure: str | None = None  # Why it failed
    image_tokens: float | None = None  # Image tokens that an average layer sees
    # Operations of this prefill, and of the untouched prompt's; None where the model's
    # configuration does not tell (:class:`vlmflow.truncation.flops.PrefillCost`)
    flops: float | None = None
    flops_untouched: float | None = None
    # FastV's formula (:func:`vlmflow.truncation.flops.formula_share`)
    formula_share: float | None = None


@dataclass(frozen=True)
class StoredTime:
    """How long one prefill took."""

    id: str  # :func:`vlmflow.studies.truncations.prefill_time.timing_id`
    seconds: float


STUDY = StoreKind(
    name="study",
    command="vlmflow study",
    format=3,  # 0 was never released, 1 named results by other hashes, 2 had no checksums
    tables={"sample": StoredSample, "result": StoredResult, "prefill": StoredTime},
)
