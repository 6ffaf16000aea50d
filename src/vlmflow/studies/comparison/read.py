"""Reading a comparison, or the study that it is, back from its directory."""

from __future__ import annotations

from pathlib import Path

from vlmflow.studies.comparison.arms import is_comparison
from vlmflow.studies.comparison.comparison import Comparison
from vlmflow.studies.truncations.results import StudyResult, read_study


def read_comparison_or_study(directory: Path) -> Comparison | StudyResult:
    """Read what is in a directory: a comparison where its truncations make one, else the study.

    Raises
    ------
    InputError
        If there is none, it is not finished, or its file is damaged.
    """
    study = read_study(directory)
    return Comparison(study) if is_comparison(study.plan.truncations) else study
