"""Samples that share nothing: a promise holds for those only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vlmflow.lvlm.video_files import VideoFile
from vlmflow.studies.certification.settings import FITTED
from vlmflow.tasks.base import Task, TaskSample


def independent_samples(task: Task, split: str, count: int, seed: int) -> list[TaskSample]:
    """Take one question per picture, drawn by the seed, of up to ``count`` pictures.

    Questions about several pictures hang together with all that name one of these files. The
    samples come in an order that the seed draws, too.
    """
    wanted = count
    while True:
        samples = list(task.samples(split, wanted))
        clusters = _connected(samples)
        if len(clusters) >= count or len(samples) < wanted:
            break
        wanted *= 2
    chosen = [min(own, key=lambda sample: _draw(sample.key, seed)) for own in clusters[:count]]
    return sorted(chosen, key=lambda sample: _draw(f"order {sample.key}", seed))


def _connected(samples: Sequence[TaskSample]) -> list[list[TaskSample]]:
    """Group samples that share a cluster or a picture's file, directly or through others."""
    above: dict[tuple[str, str], tuple[str, str]] = {}

    def root(name: tuple[str, str]) -> tuple[str, str]:
        while above.setdefault(name, name) != name:
            name = above[name]
        return name

    clusters = [("cluster", sample.cluster or sample.key) for sample in samples]
    for sample, cluster in zip(samples, clusters, strict=True):
        for picture in sample.pictures:
            file = picture.path if isinstance(picture, VideoFile) else picture
            if isinstance(file, str | Path):
                above[root(("file", str(file)))] = root(cluster)
    groups: dict[tuple[str, str], list[TaskSample]] = {}
    for sample, cluster in zip(samples, clusters, strict=True):
        groups.setdefault(root(cluster), []).append(sample)
    return list(groups.values())


def divided(samples: Sequence[TaskSample]) -> tuple[list[int], list[int]]:
    """Divide samples, already in a drawn order, into the fitting and the testing part: indices."""
    fitted = round(FITTED * len(samples))
    return list(range(fitted)), list(range(fitted, len(samples)))


def _draw(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()
