"""Figures over all samples with their intervals: means, and ratios and sums of means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.statistics.bootstrap import groups_of, percentile_interval, resamples
from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.tasks.metrics.coco_objects import coco_mentions
from vlmflow.tasks.metrics.mme import PERCEPTION
from vlmflow.tasks.metrics.pope import official_yes_or_no

DRAWS = 2000

FloatArray = npt.NDArray[np.float64]

Counts = Callable[[Task, Sequence[TaskSample], Sequence[str]], FloatArray]
"""Gives what is added up over samples: (n, k)."""


@dataclass(frozen=True)
class Figure:
    """A figure that papers print, as a function of sums over samples.

    Parameters
    ----------
    scale : float
        What papers print for 1.
    counts : callable
        What is added up.
    of : callable, optional
        From sums (..., k) to the figure (...). None: the mean of the only column.
    """

    scale: float
    counts: Counts
    of: Callable[[FloatArray], FloatArray] | None = None


@dataclass(frozen=True)
class Measured:
    """A measured figure, in the units that papers print."""

    estimate: Estimate
    change: Estimate | None  # To the untouched model on the same samples
    count: int  # Samples


def measure(
    figure: Figure,
    own: FloatArray,
    untouched: FloatArray | None,
    clusters: Sequence[str],
    seed: int,
) -> Measured:
    """Estimate a figure, and its change where the untouched model's counts are given.

    Means have the intervals of every study; all else a bootstrap that draws whole pictures.
    """
    scale, count = figure.scale, len(own)
    if figure.of is None:
        value = mean_estimate(own[:, 0].tolist(), clusters, draws=DRAWS, seed=seed)
        change = None
        if untouched is not None:
            change = paired_difference(own[:, 0].tolist(), untouched[:, 0].tolist(), clusters)
        return Measured(_times(value, scale), change and _times(change, scale), count)
    weights = _weights(count, clusters, seed)
    drawn, whole = figure.of(weights @ own), float(figure.of(own.sum(0)))
    value, change = _between(whole, drawn), None
    if untouched is not None:
        before = figure.of(weights @ untouched)
        change = _between(whole - float(figure.of(untouched.sum(0))), drawn - before)
    return Measured(_times(value, scale), change and _times(change, scale), count)


def _weights(count: int, clusters: Sequence[str], seed: int) -> FloatArray:
    """Say how often every draw has every sample: (draws, n)."""
    groups = groups_of(count, clusters)
    size = int(groups.max()) + 1
    often = [np.bincount(draw, minlength=size) for draw in resamples(size, DRAWS, seed)]
    return np.array(often, dtype=np.float64)[:, groups]


def _between(value: float, drawn: FloatArray) -> Estimate:
    low, high = percentile_interval(drawn)
    return Estimate(value, float(low), float(high))


def _times(estimate: Estimate, scale: float) -> Estimate:
    return Estimate(scale * estimate.value, scale * estimate.low, scale * estimate.high)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _scores(task: Task, samples: Sequence[TaskSample], answers: Sequence[str]) -> FloatArray:
    return np.array(task.scores(samples, answers), dtype=np.float64)[:, None]


def _pope(_task: Task, samples: Sequence[TaskSample], answers: Sequence[str]) -> FloatArray:
    """Give right answers; yes that is right, yes that is said, yes that would be right."""
    rows = []
    for sample, answer in zip(samples, answers, strict=True):
        said, right = official_yes_or_no(answer), sample.references[0].strip().lower()
        rows.append([said == right, said == right == "yes", said == "yes", right == "yes"])
    return np.array(rows, dtype=np.float64)


def _chair(_task: Task, samples: Sequence[TaskSample], answers: Sequence[str]) -> FloatArray:
    """Give objects named that no reference caption names, objects named, and whether any was."""
    rows = []
    for sample, answer in zip(samples, answers, strict=True):
        present = {thing for caption in sample.references for thing in coco_mentions(caption)}
        named = coco_mentions(answer)
        absent = sum(thing not in present for thing in named)
        rows.append([absent, len(named), absent > 0])
    return np.array(rows, dtype=np.float64)


def _mme(task: Task, samples: Sequence[TaskSample], answers: Sequence[str]) -> FloatArray:
    """Give four columns per category: scores, samples, pictures all right, pictures of several."""
    scores = task.scores(samples, answers)
    of_picture: dict[tuple[str, str], list[int]] = {}
    for place, sample in enumerate(samples):
        of_picture.setdefault((sample.group, sample.cluster), []).append(place)
    rows = np.zeros((len(samples), 4 * len(PERCEPTION)))
    for (group, _), places in of_picture.items():
        if group not in PERCEPTION:
            continue
        column = 4 * PERCEPTION.index(group)
        own = [scores[place] for place in places]
        rows[places, column] = own
        rows[places, column + 1] = 1
        if len(places) > 1:
            rows[places[0], column + 2 : column + 4] = float(all(own)), 1
    return rows


def _perception(sums: FloatArray) -> FloatArray:
    """Add accuracy and accuracy+ over categories, as a share of the most there can be."""
    total = _ratio(sums[..., 0::4], sums[..., 1::4]) + _ratio(sums[..., 2::4], sums[..., 3::4])
    return np.asarray(total.sum(-1) / (2 * len(PERCEPTION)))


FIGURES = {
    "accuracy": Figure(100, _scores),
    "VQA accuracy": Figure(100, _scores),
    "CIDEr": Figure(100, _scores),
    "POPE accuracy": Figure(100, lambda *all_of: _pope(*all_of)[:, :1]),
    "POPE F1": Figure(100, _pope, lambda sums: _ratio(2 * sums[..., 1], sums[..., 2:].sum(-1))),
    "CHAIRi": Figure(100, _chair, lambda sums: _ratio(sums[..., 0], sums[..., 1])),
    "CHAIRs": Figure(100, lambda *all_of: _chair(*all_of)[:, 2:]),
    "MME perception": Figure(200 * len(PERCEPTION), _mme, _perception),
}
"""Figures of answers, by what tables call them."""

CURVES = ("insertion", "deletion")
"""Figures of maps; they come from a study of faithfulness, between 0 and 1."""


def scale_of(figure: str) -> float:
    """Return what papers print for 1."""
    return 1.0 if figure in CURVES else FIGURES[figure].scale
