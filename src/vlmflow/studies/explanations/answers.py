"""What is kept of a task's explained answers, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from vlmflow.tasks.base import TaskSample


@dataclass(frozen=True)
class ExplainedAnswer:
    """One sample of an explained task.

    Parameters
    ----------
    sample : TaskSample
        Its question and pictures.
    folder : str
        Name of the directory of its report and numbers.
    answer : str, optional
        The model's answer; None where the sample failed.
    score : float
        The task's score of that answer; NaN where the sample failed.
    headline : str
        What the answer read, in a sentence; empty where it failed.
    picture : str
        Whether the picture matters to it.
    trust : str
        Whether its map ranks regions better than chance; empty where that was not asked.
    truncated, truncated_score : str and float, optional
        The answer with image tokens removed, and its score; None where that was not asked.
    failure : str, optional
        Why it failed.
    batch : int
        Samples that were answered and measured together, itself included.
    """

    sample: TaskSample
    folder: str
    answer: str | None
    score: float
    headline: str = ""
    picture: str = ""
    failure: str | None = None
    trust: str = ""
    truncated: str | None = None
    truncated_score: float | None = None
    batch: int = 1


@dataclass(frozen=True)
class ExplainedTask:
    """The explained answers of a task, in the order of its samples.

    Parameters
    ----------
    task, metric : str
        The task and what its score is called.
    model : str
        Name of the model.
    answers : tuple of ExplainedAnswer
        Of every sample, also of those that failed.
    settings : dict
        What was asked for.
    """

    task: str
    metric: str
    model: str
    answers: tuple[ExplainedAnswer, ...]
    settings: dict[str, Any]

    @property
    def failures(self) -> tuple[ExplainedAnswer, ...]:
        """Samples that could not be explained."""
        return tuple(answer for answer in self.answers if answer.failure is not None)

    def frame(self) -> pd.DataFrame:
        """One row per sample, those that failed first, then by score from the lowest."""
        trust = any(answer.trust for answer in self.answers)
        truncated = any(answer.truncated is not None for answer in self.answers)
        rows = [
            {
                "key": answer.sample.key,
                "group": answer.sample.group,
                "question": answer.sample.question,
                "reference": " | ".join(answer.sample.references),
                "answer": answer.answer,
                "score": answer.score,
                "read": answer.headline,
                "picture": answer.picture,
                **({"trust": answer.trust} if trust else {}),
                **(
                    {"truncated": answer.truncated, "truncated_score": answer.truncated_score}
                    if truncated
                    else {}
                ),
                "failure": answer.failure,
                "folder": answer.folder,
            }
            for answer in self.answers
        ]
        frame = pd.DataFrame(rows)
        return frame.sort_values("score", na_position="first", kind="stable", ignore_index=True)

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return self.frame().to_html(index=False)
