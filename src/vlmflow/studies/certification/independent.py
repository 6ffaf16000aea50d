"""Samples that share nothing: a promise holds for those only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vlmflow.studies.certification.settings import FITTED
from vlmflow.tasks.base import Task, TaskSample


def independent_samples(task: Task, split: str, count: int, seed: int) -> list[TaskSample]:
    """Take one question per picture, drawn by the seed, of up to ``count`` pictures.

    The samples come in an order that the seed draws, too.
    """
    wanted = count
    while True:
        samples = list(task.samples(split, wanted))
        clusters: dict[str, list[TaskSample]] = {}
        for sample in samples:
            clusters.setdefault(sample.cluster or sample.key, []).append(sample)
        if len(clusters) >= count or len(samples) < wanted:
            break
        wanted *= 2
    chosen = [
        min(own, key=lambda sample: _draw(sample.key, seed))
        for own in list(clusters.values())[:count]
    ]
    return sorted(chosen, key=lambda sample: _draw(f"order {sample.key}", seed))


def divided(samples: Sequence[TaskSample]) -> tuple[list[int], list[int]]:
    """Divide samples, already in a drawn order, into the fitting and the testing part: indices."""
    fitted = round(FITTED * len(samples))
    return list(range(fitted)), list(range(fitted, len(samples)))


def _draw(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()
