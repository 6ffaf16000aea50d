"""Paths of policies from safe to aggressive, the test along them, and what they are held against.

A path is fixed on one part of the calibration split and tested on the other. Its policies let a
sample leave at the first exit where the fitted chance of a change is at most a tolerance, which
grows along the path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmflow.statistics.risk_control import last_accepted
from vlmflow.studies.certification.fitting import (
    folds_of,
    probe_values,
    probe_weights,
    thresholds_at,
)
from vlmflow.studies.certification.outcomes import FloatArray, IntArray, Outcomes, first_reached
from vlmflow.studies.promise import Promise

CHANCES = np.geomspace(0.002, 0.6, 40)
"""Tolerances of a path's policies: fitted chances of a change with which a sample leaves."""

PROBE = "probe"


@dataclass(frozen=True, eq=False)
class PolicyPath:
    """Policies by one signal, from safe to aggressive.

    ``T`` policies, ``E`` exits.
    """

    signal: str
    keep: int  # Index of what stays after an exit
    thresholds: FloatArray  # (T, E)

    def exits(self, values: FloatArray) -> list[IntArray]:
        """Replay every policy on samples' values of the signal, (n, E)."""
        return [first_reached(values, row) for row in self.thresholds]


@dataclass(frozen=True)
class Tested:
    """Policies tested one after the other."""

    p_values: tuple[float, ...]
    accepted: int | None  # The last that passed before the first failure


def fit_path(fitted: Outcomes, signal: str, keep: int, values: FloatArray) -> PolicyPath:
    """Make the path of a signal whose values on the fitting part are ``values``, (n, E)."""
    columns = [
        thresholds_at(values[:, place], fitted.changed[:, place, keep], CHANCES)
        for place in range(len(fitted.layers))
    ]
    return PolicyPath(signal, keep, np.stack(columns, axis=1))


def choose_path(paths: Sequence[PolicyPath], fitted: Outcomes, values: Mapping[str, FloatArray],
                promise: Promise) -> PolicyPath:  # fmt: skip
    """Take the path that would spare most if the fitting part were the one it is tested on.

    Where none would pass, the one whose safest policy is safest.
    """

    def worth(path: PolicyPath) -> tuple[float, float]:
        replayed = path.exits(values[path.signal])
        tested = pass_along(fitted, replayed, path.keep, promise)
        if tested.accepted is None:
            return -1.0, -tested.p_values[0]
        return float(fitted.saved(replayed[tested.accepted], path.keep).mean()), 0.0

    return max(paths, key=worth)


def pass_along(
    outcomes: Outcomes, replayed: Sequence[IntArray], keep: int, promise: Promise,
    level: float | None = None,
) -> Tested:  # fmt: skip
    """Test policies in their order, each given as the exits it makes."""
    p_values = tuple(
        promise.p_value(
            outcomes.changes(exits, keep),
            None if promise.loss is None else outcomes.loss(exits, keep),
        )
        for exits in replayed
    )
    return Tested(p_values, last_accepted(p_values, promise.level if level is None else level))


def signal_values(fitted: Outcomes, others: Sequence[Outcomes], keep: int = 0) -> list[
    dict[str, FloatArray]
]:  # fmt: skip
    """Give the values of every signal, the probe among them, on the fitting part and on others.

    The probe is fitted on the fitting part; there its values are those of probes that were fitted
    without the sample's fold.
    """
    parts = [fitted, *others]
    values: list[dict[str, FloatArray]] = [dict(part.signals) for part in parts]
    probes = [
        _probed(parts, [part.states[:, place] for part in parts], place, keep)
        for place in range(len(fitted.layers))
    ]
    for number, own in enumerate(values):
        own[PROBE] = np.stack([column[number] for column in probes], axis=1)
    return values


def text_values(fitted: Outcomes, others: Sequence[Outcomes], keep: int) -> list[FloatArray]:
    """Give the values of a probe on the question alone, (n, E) per part: it sees no picture."""
    parts = [fitted, *others]
    columns = [
        _probed(parts, [part.texts for part in parts], place, keep)
        for place in range(len(fitted.layers))
    ]
    return [
        np.stack([column[number] for column in columns], axis=1) for number in range(len(parts))
    ]


def _probed(
    parts: Sequence[Outcomes], features: Sequence[np.ndarray], place: int, keep: int
) -> list[FloatArray]:
    """Values of one exit's probe on every part, of which the first is the one it is fitted on."""
    fitted = parts[0]
    changed = fitted.changed[:, place, keep]
    if changed.all() or not changed.any():
        return [np.zeros(len(part)) for part in parts]
    weights, bias = probe_weights(features[0], changed)
    inside = probe_values(features[0], changed, folds_of(fitted))
    return [inside, *(own.astype(np.float64) @ weights + bias for own in features[1:])]


def constant_exits(outcomes: Outcomes) -> list[IntArray]:
    """Replay the policies that let everybody leave at one layer: nowhere, then the last first."""
    count = len(outcomes.layers)
    return [np.full(len(outcomes), place, np.int64) for place in range(count, -1, -1)]


def exits_by_group(fitted: Outcomes, other: Outcomes, keep: int) -> list[list[IntArray]]:
    """Replay policies with one layer per kind of question, chosen on the fitting part.

    Per tolerance the first layer of each group from which at most that share of its answers changes
    on the fitting part. Returns the exits on both parts.
    """
    count = len(fitted.layers)
    replayed: list[list[IntArray]] = [[], []]
    for chance in CHANCES:
        chosen = {}
        for group in set(fitted.groups):
            rows = np.array([own == group for own in fitted.groups])
            safe = fitted.changed[rows][:, :, keep].mean(0) <= chance
            chosen[group] = int(safe.argmax()) if safe.any() else count
        for part, own in zip((fitted, other), replayed, strict=True):
            own.append(np.array([chosen.get(group, count) for group in part.groups], np.int64))
    return replayed
