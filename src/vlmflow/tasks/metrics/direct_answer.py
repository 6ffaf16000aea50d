"""Direct answers of A-OKVQA: as good as the number of annotators who gave the same."""

from __future__ import annotations

from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric


class DirectAnswer(Metric):
    """``min(annotators who said it / 3, 1)``, as A-OKVQA's script (Schwenk et al., ECCV 2022).

    Unlike VQA accuracy it leaves no annotator out and normalises nothing but case; white space
    around the answer and a full stop after it are ignored here.
    """

    name = "direct answer accuracy"

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer."""
        text = _plain(answer)
        return min(sum(text == _plain(reference) for reference in sample.references) / 3, 1.0)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().lower()
