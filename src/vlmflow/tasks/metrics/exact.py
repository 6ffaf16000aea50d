"""Exact match up to case, punctuation and white space (GQA)."""

from __future__ import annotations

import string

from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


class ExactMatch(Metric):
    """Share of answers that are the reference, as lmms-eval compares GQA's.

    GQA's own script (Hudson and Manning, CVPR 2019) compares the strings as they are, which counts
    "Yes." as wrong.
    """

    name = "exact match"

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer."""
        return float(plain(answer) in {plain(reference) for reference in sample.references})
