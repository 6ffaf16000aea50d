"""POPE: yes or no, with precision, recall, F1 and the share of yes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric


def yes_or_no(answer: str) -> str:
    """Read ``yes``, ``no`` or neither (empty) from an answer's first sentence.

    The rule of POPE's script (Li et al., EMNLP 2023): "no" or "not" among the words of the first
    sentence is no. The script takes all else as yes; here a yes has to be said, so that a broken
    model's noise is not credited with half of the questions.
    """
    words = set(re.findall(r"[a-z']+", answer.split(".")[0].lower()))
    if words & {"no", "not"}:
        return "no"
    return "yes" if "yes" in words else ""


def official_yes_or_no(answer: str) -> str:
    """Read ``yes`` or ``no`` as POPE's script does, to the letter.

    ``No``, ``no`` or ``not`` between spaces of the first sentence, commas aside, is no; anything
    else is yes, an empty answer and "NO" too.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def exact_yes_or_no(answer: str) -> str:
    """Read ``yes`` or ``no`` only where the answer is nothing else, as lmms-eval does."""
    text = answer.strip().lower()
    return text if text in ("yes", "no") else ""


class YesNo(Metric):
    """Share of right answers, read by :func:`yes_or_no`; "Yes." and "Yes, there is." count.

    :meth:`figures` adds precision, recall, F1 (of "yes") and the share of yes, all of them read
    three times: as they stand by :func:`yes_or_no`, as ``official ...`` by
    :func:`official_yes_or_no`, and as ``exact ...`` by :func:`exact_yes_or_no`; and ``neither``,
    the share of answers that are neither by :func:`yes_or_no`. In ``exact recall`` an answer that
    is neither misses a yes (lmms-eval leaves it out), and the share of yes is that of the answers
    (lmms-eval's is that of the references).
    """

    name = "accuracy"

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer."""
        return float(yes_or_no(answer) == sample.references[0].strip().lower())

    def figures(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return precision, recall, F1 and the share of yes by each of the three readings."""
        figures = _figures(samples, answers, yes_or_no)
        neither = sum(not yes_or_no(answer) for answer in answers) / max(len(answers), 1)
        del figures["accuracy"]  # the mean score
        for reading, read in (("official", official_yes_or_no), ("exact", exact_yes_or_no)):
            again = _figures(samples, answers, read)
            figures |= {f"{reading} {name}": value for name, value in again.items()}
        return figures | {"neither": neither}


def _figures(
    samples: Sequence[TaskSample], answers: Sequence[str], read: Callable[[str], str]
) -> dict[str, float]:
    right = [sample.references[0].strip().lower() for sample in samples]
    read_answers = [read(answer) for answer in answers]
    both = sum(a == b == "yes" for a, b in zip(right, read_answers, strict=True))
    precision = both / max(read_answers.count("yes"), 1)
    recall = both / max(right.count("yes"), 1)
    return {
        "accuracy": sum(a == b for a, b in zip(right, read_answers, strict=True))
        / max(len(right), 1),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall) if both else 0.0,
        "yes ratio": read_answers.count("yes") / max(len(read_answers), 1),
    }
