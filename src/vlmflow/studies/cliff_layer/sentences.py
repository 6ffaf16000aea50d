"""A cliff study's finding in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.removal.cliff import Cliff
from vlmflow.tasks.base import SPLITS

if TYPE_CHECKING:
    from vlmflow.studies.cliff_layer.measurements import Failure
    from vlmflow.studies.cliff_layer.prediction import Prediction

NAME_SHOWN = 120


def headline(task: str, cliff: Cliff, layers: int) -> str:
    """Say the finding by the share of changed answers, of a model with so many decoder layers."""
    task = shown(task, NAME_SHOWN)
    most = f"{100 * cliff.tolerance:g} % of the answers"
    if cliff.layer is None:
        return f"{task}: removing all image tokens changes more than {most} at every layer"
    if cliff.layer == 0:
        return f"{task}: without the picture, at most {most} change"
    return (
        f"{task}: from layer {cliff.layer} of {layers} on, all image tokens can go; "
        f"at most {most} change"
    )


def interval(cliff: Cliff) -> str:
    """Return ``"5 to 7"``, ``"6"``, ``"11 to none"`` or ``"none"``."""
    low, high = ("none" if end is None else str(end) for end in (cliff.low, cliff.high))
    return low if low == high else f"{low} to {high}"


def cliff_words(cliff: Cliff) -> str:
    """Return ``"the cliff layer is 6 (95 % interval 5 to 7)"``, or that there is none."""
    if cliff.layer is not None:
        ends = interval(cliff).replace("none", "beyond the last layer")
        ends += " alone" if cliff.low == cliff.high else ""
        return f"the cliff layer is {cliff.layer} (95 % interval {ends})"
    if cliff.low is None:
        return "there is no cliff layer"
    return f"no cliff layer is shown, though it may be as early as {cliff.low} (95 % interval)"


def failed_words(failures: Sequence[Failure]) -> str:
    """Return ``"2 samples failed (1 of calibration, 1 of test)"``."""
    counts = {split: sum(failure.split == split for failure in failures) for split in SPLITS}
    parts = ", ".join(f"{count} of {split}" for split, count in counts.items() if count)
    return f"{len(failures)} sample{'' if len(failures) == 1 else 's'} failed ({parts})"


def error_words(prediction: Prediction) -> str:
    """Return ``"1.20 (0.95 to 1.43)"``, in layers."""
    return f"{prediction.error:.2f} ({prediction.error_low:.2f} to {prediction.error_high:.2f})"


def rank_words(prediction: Prediction) -> str:
    """Return ``"0.61 (0.40 to 0.75)"``, ``"0.61"`` without an interval, or ``"undefined"``."""
    if prediction.rank is None:
        return "undefined"
    if prediction.rank_low is None or prediction.rank_high is None:
        return f"{prediction.rank:.2f}"
    return f"{prediction.rank:.2f} ({prediction.rank_low:.2f} to {prediction.rank_high:.2f})"
