"""What an exit policy has to beat, certified on the same samples at the same level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.studies.certification.findings import Rival
from vlmflow.studies.certification.outcomes import IntArray, Outcomes
from vlmflow.studies.certification.paths import (
    CHANCES,
    PolicyPath,
    Tested,
    constant_exits,
    exits_by_group,
    fit_path,
    pass_along,
    text_values,
)
from vlmflow.studies.promise import Promise

DRAWS = 2000


def judged(
    name: str,
    what: str,
    outcomes: Outcomes,
    exits: IntArray | None,
    keep: int,
    *,
    p_value: float | None,
    runs: bool = True,
    setting: str = "",
) -> Rival:
    """Say what a policy, given as the exits it makes on the test split, spares and risks there."""
    if exits is None:
        exits = np.full(len(outcomes), len(outcomes.layers), np.int64)
    saved = outcomes.saved(exits, keep)
    low, high = mean_interval(saved[:, None], list(outcomes.clusters), DRAWS, 0)
    risk = float(outcomes.changes(exits, keep).mean())
    ends = float(low[0]), float(high[0])
    return Rival(name, what, runs, p_value, float(saved.mean()), *ends, risk, setting)


def constant_rival(
    calibration: Outcomes, test: Outcomes, promise: Promise
) -> tuple[Rival, tuple[int, int] | None]:
    """Certify one layer for all, on the whole calibration split: nothing has to be fitted for it.

    The level is divided by the number of amounts kept that are tried. Also returns index of the
    layer and of the amount, None where nothing is accepted.
    """
    best: tuple[float, int, int, float] | None = None
    for keep in range(len(calibration.keeps)):
        tested = pass_along(
            calibration,
            constant_exits(calibration),
            keep,
            promise,
            promise.level / len(calibration.keeps),
        )
        if tested.accepted is None:
            continue
        exits = constant_exits(calibration)[tested.accepted]
        place = int(exits[0])
        if place == len(calibration.layers):  # nobody leaves
            continue
        saved = float(calibration.saved(exits, keep).mean())
        if best is None or saved > best[0]:
            best = saved, place, keep, tested.p_values[tested.accepted]
    what = "one layer for everybody, the best that can be certified"
    if best is None:
        return judged("constant", what, test, None, 0, p_value=None), None
    _, place, keep, p_value = best
    setting = f"layer {calibration.layers[place]}, keep {calibration.keeps[keep]:g}"
    exits = np.full(len(test), place, np.int64)
    rival = judged("constant", what, test, exits, keep, p_value=p_value, setting=setting)
    return rival, (place, keep)


def group_rival(
    fitted: Outcomes, testing: Outcomes, test: Outcomes, keep: int, promise: Promise
) -> Rival:
    """Certify one layer per kind of question: it has to be told the kind."""
    _, replayed = exits_by_group(fitted, testing, keep)
    tested = pass_along(testing, replayed, keep, promise)
    _, others = exits_by_group(fitted, test, keep)
    what = "one layer per kind of question, which it has to be told"
    return _accepted("by kind", what, test, others, keep, tested)


def text_rival(
    fitted: Outcomes, testing: Outcomes, test: Outcomes, keep: int, promise: Promise
) -> Rival:
    """Certify exits by a probe on the question alone: at most it recognises kinds of question."""
    inside, own, other = text_values(fitted, [testing, test], keep)
    path = fit_path(fitted, "question", keep, inside)
    tested = pass_along(testing, path.exits(own), keep, promise)
    what = "a probe that sees the question and no picture"
    return _accepted("question alone", what, test, path.exits(other), keep, tested)


def oracle_rival(test: Outcomes) -> Rival:
    """Let every sample leave at its own cliff, which nobody knows beforehand."""
    what = "every sample at its own cliff, which nobody knows beforehand"
    least = int(np.argmin(test.keeps))
    return judged("oracle", what, test, test.oracle, least, p_value=None, runs=False)


def policy_rival(path: PolicyPath, tested: Tested, values: np.ndarray, test: Outcomes) -> Rival:
    """Judge the policy itself by the same replay."""
    what = f"exits by {path.signal}"
    return _accepted("policy", what, test, path.exits(values), path.keep, tested, runs=True)


def _accepted(
    name: str,
    what: str,
    test: Outcomes,
    replayed: Sequence[IntArray],
    keep: int,
    tested: Tested,
    *,
    runs: bool = False,
) -> Rival:
    if tested.accepted is None:
        return judged(name, what, test, None, keep, p_value=None, runs=runs)
    return judged(
        name,
        what,
        test,
        replayed[tested.accepted],
        keep,
        p_value=tested.p_values[tested.accepted],
        runs=runs,
        setting=f"tolerance {CHANCES[tested.accepted]:.3f}, keep {test.keeps[keep]:g}",
    )
