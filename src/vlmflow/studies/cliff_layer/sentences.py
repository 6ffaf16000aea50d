"""A cliff study's finding in words."""

from __future__ import annotations

from vlmflow.escape_invisible import shown
from vlmflow.removal.cliff import Cliff

NAME_SHOWN = 120


def headline(task: str, cliff: Cliff, layers: int) -> str:
    """Say the finding in one sentence.

    Parameters
    ----------
    task : str
        Its name.
    cliff : Cliff
        By the share of changed answers.
    layers : int
        Number of decoder layers.
    """
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
