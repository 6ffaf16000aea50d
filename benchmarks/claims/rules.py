"""The paper's claims and the rules that judge them, set before anything was measured.

Every rule reads the test split; what it has to choose (a cliff layer, a setting) it chooses on the
calibration split. Where a claim is judged on several tasks or settings at once, its intervals are
widened (Bonferroni), so that 95 % holds for all of them together. A rule's words are printed on the
claims page beside what came out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from benchmarks.claims.evidence import (
    CHANGED,
    DRAWS,
    PRESETS,
    SEED,
    TASKS,
    Evidence,
    FloatArray,
    after_layer_three,
    drawn,
    exit_layers,
    shallow,
)
from vlmflow.removal.cliff import cliff_layer
from vlmflow.statistics.bootstrap import sample_draws
from vlmflow.statistics.intervals import adjusted_difference, wilson_interval
from vlmflow.studies.truncations.arms import UNTOUCHED
from vlmflow.truncation.presets import preset
from vlmflow.truncation.truncation import Truncation

HOLDS, FAILS, UNCLEAR, UNMEASURED = "holds", "fails", "cannot tell", "not measured"
MARGIN, WORTH = 0.03, 0.01
"""What a score may fall by and still count as not hurt; the least gain that counts as help."""

SAME_DECODER = ("scenes-smollm2", "scenes-smolvlm")
SAME_CONNECTOR = ("scenes-smollm2", "scenes-llava")
SECOND_SEED = "scenes-smollm2-seed1"


@dataclass(frozen=True)
class Verdict:
    """What a rule says about one model, on one task or on all."""

    word: str  # One of the four above
    where: str  # Task, or what else it is about
    figure: str  # The measurement with its interval


def overall(verdicts: Sequence[Verdict]) -> str:
    """Judge a claim on a model: it holds if it holds wherever it was tested."""
    words = {verdict.word for verdict in verdicts}
    if not words or words == {UNMEASURED}:
        return UNMEASURED
    if FAILS in words:
        return FAILS
    return HOLDS if words == {HOLDS} else UNCLEAR


def between(low: float, high: float, *, holds: bool, fails: bool) -> str:
    """Word of an interval that lies on one side or the other."""
    if not low <= high:
        raise ValueError(f"an interval from {low} to {high}")
    return HOLDS if holds else FAILS if fails else UNCLEAR


def converges_early(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 1: in four of five samples the most concentrated layer lies in the first half."""
    verdicts = []
    for task in tasks:
        early = task.concentration.argmax(1) < task.layers / 2
        low, high = wilson_interval(int(early.sum()), len(early))
        word = between(low, high, holds=low >= 0.8, fails=high < 0.8)
        verdicts.append(Verdict(word, task.task, _percent(early.mean(), low, high)))
    return verdicts


def attention_falls(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 2a: after the paper's layer 3, image tokens get under 2 % up to the last layer."""
    verdicts = []
    for task in tasks:
        shares = task.attention[:, after_layer_three(task.layers) : -1]
        means = np.array([shares[p].mean(0) for p in _draws(task, len(shares))])
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        word = between(low.max(), high.max(), holds=high.max() < 0.02, fails=low.max() > 0.02)
        worst = int(shares.mean(0).argmax())
        layer = worst + after_layer_three(task.layers)
        figure = _percent(shares.mean(0)[worst], low[worst], high[worst])
        verdicts.append(Verdict(word, task.task, f"at most {figure}, at layer {layer}"))
    return verdicts


def attention_rises(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 2b: in the last layer image tokens get more attention than in the one before."""
    verdicts = []
    for task in tasks:
        gain = task.attention[:, -1] - task.attention[:, -2]
        means = [gain[picked].mean() for picked in _draws(task, len(gain))]
        low, high = np.quantile(means, [0.025, 0.975])
        word = between(low, high, holds=low > 0, fails=high < 0)
        verdicts.append(Verdict(word, task.task, _points(gain.mean(), low, high)))
    return verdicts


def has_cliff(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 3: from some layer on, all image tokens can go and at most 5 % of answers change."""
    verdicts = []
    for task in tasks:
        drawn = task.cliff_draws()
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        word = between(low, high, holds=high < task.layers, fails=low == task.layers)
        ends = [_layer(end, task.layers) for end in (_cliff(task), low, high)]
        verdicts.append(Verdict(word, task.task, f"{ends[0]} ({ends[1]} to {ends[2]})"))
    return verdicts


def harder_is_earlier(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 4: cliffs in the order reasoning, reading, yes/no, captions."""
    by_name = {task.task: task for task in tasks}
    ordered = [by_name[name] for name in TASKS if name in by_name]
    verdicts = []
    for earlier, later in itertools.pairwise(ordered):
        gap = later.cliff_draws() - earlier.cliff_draws()
        level = 0.05 / max(1, len(ordered) - 1)
        low, high = np.quantile(gap, [level / 2, 1 - level / 2], method="inverted_cdf")
        word = between(low, high, holds=low >= 0 and high > 0, fails=high < 0)
        where = f"{_short(earlier.task)} before {_short(later.task)}"
        figure = f"{_cliff(later) - _cliff(earlier):+d} layers ({low:+d} to {high:+d})"
        verdicts.append(Verdict(word, where, figure))
    return verdicts


def does_not_hurt(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 5a: without image tokens from the calibration split's cliff on, no 3 points lost."""
    return [
        _compare(task, _arm_at_cliff(task), UNTOUCHED, len(tasks), -MARGIN, -MARGIN)
        for task in tasks
    ]


def helps(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 5b: the same improves the score; a gain of a point or more is not excluded."""
    return [
        _compare(task, _arm_at_cliff(task), UNTOUCHED, len(tasks), 0.0, WORTH) for task in tasks
    ]


def ranking_beats_random(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 6: the setting that gains most on the calibration split gains on the test split."""
    verdicts = []
    for task in tasks:
        best = _best_ranking(task)
        control = None if best is None else task.arm(drawn(task.policies[best]))
        verdicts.append(_compare(task, best, control, len(tasks), 0.0, 0.0))
    return verdicts


def presets_do_not_hurt(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 8: each published setting loses no 3 points."""
    tests = len(PRESETS) * len(tasks)
    return [
        _compare(
            task,
            task.arm(preset(name, task.layers)),
            UNTOUCHED,
            tests,
            -MARGIN,
            -MARGIN,
            where=name,
        )
        for task in tasks
        for name in PRESETS
    ]


def aggregating_improves(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 9a: the merging that scores best on the calibration split beats untouched tokens."""
    return [_compare(task, _best_merge(task), UNTOUCHED, len(tasks), 0.0, WORTH) for task in tasks]


def aggregating_beats_dropping(tasks: Sequence[Evidence]) -> list[Verdict]:
    """Claim 9b: the same merging beats dropping as many tokens."""
    verdicts = []
    for task in tasks:
        merged = _best_merge(task)
        dropped = None if merged is None else task.arm(as_dropped(task.policies[merged]))
        verdicts.append(_compare(task, merged, dropped, len(tasks), 0.0, 0.0))
    return verdicts


def decoder_not_connector(models: Mapping[str, Sequence[Evidence]]) -> Verdict:
    """Claim 7: cliffs differ more between decoders than between connectors, and than by seed.

    Distances are of relative cliff layers (layer / L), their mean over the tasks all have.
    """
    needed = (SAME_DECODER[0], SAME_DECODER[1], SAME_CONNECTOR[1], SECOND_SEED)
    missing = [name for name in needed if not models.get(name)]
    if missing:
        return Verdict(UNMEASURED, "all models", f"no results of {', '.join(missing)}")
    by_model = {name: {task.task: task for task in models[name]} for name in needed}
    shared = [task for task in TASKS if all(task in tasks for tasks in by_model.values())]

    def distance(first: str, second: str) -> FloatArray:
        pairs = [(by_model[first][task], by_model[second][task]) for task in shared]
        gaps = [np.abs(a.cliff_draws() / a.layers - b.cliff_draws() / b.layers) for a, b in pairs]
        mean: FloatArray = np.mean(gaps, axis=0)
        return mean

    decoder = distance(*SAME_CONNECTOR)
    floor = np.maximum(distance(*SAME_DECODER), distance(SAME_DECODER[0], SECOND_SEED))
    low, high = np.quantile(decoder - floor, [0.025, 0.975])
    word = between(low, high, holds=low > 0, fails=high < 0)
    return Verdict(word, "all models", _points((decoder - floor).mean(), low, high))


def _compare(
    task: Evidence,
    arm: str | None,
    control: str | None,
    tests: int,
    least: float,
    excluded: float,
    *,
    where: str = "",
) -> Verdict:
    """Judge the gain of an arm over a control on the test split.

    It holds above ``least``, and fails where the interval lies below ``excluded``.
    """
    what = f"{task.task}, {where}" if where else task.task
    if arm == "":
        return Verdict(FAILS, what, "no cliff layer on the calibration split")
    if arm is None or control is None or ("test", arm) not in task.scores:
        return Verdict(UNMEASURED, what, "no such setting")
    scores, reference = task.scores["test", arm], task.scores["test", control]
    centre, error = adjusted_difference(scores.tolist(), reference.tolist())
    reach = NormalDist().inv_cdf(1 - 0.025 / tests) * error
    low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
    word = between(low, high, holds=low > least, fails=high < excluded)
    gain = float((scores - reference).mean())
    return Verdict(word, what, _points(gain, low, high) + ("" if where else f", {arm}"))


def _arm_at_cliff(task: Evidence) -> str | None:
    """Name the arm without image tokens from the calibration split's cliff on; none: ``""``."""
    kept: str | None = ""
    for layer in reversed(exit_layers(task.layers)):
        arm = task.arm(Truncation(layer, 0))
        if arm is None:
            return None
        if task.agreement[arm] < 1 - CHANGED:
            return kept
        kept = arm
    return kept


def _arms(task: Evidence, policies: Sequence[Truncation]) -> list[str]:
    return [name for name in map(task.arm, policies) if name is not None]


def as_dropped(policy: Truncation) -> Truncation:
    """Remove the same tokens without merging them."""
    return replace(policy, remainder="drop")


def chosen(task: Evidence) -> list[Truncation]:
    """List what the test split has to answer under, by what the calibration split says."""
    listed = [preset(name, task.layers) for name in PRESETS]
    cliff, ranked, merged = _arm_at_cliff(task), _best_ranking(task), _best_merge(task)
    if cliff:
        listed.append(task.policies[cliff])
    if ranked:
        listed += [task.policies[ranked], drawn(task.policies[ranked])]
    if merged:
        listed += [task.policies[merged], as_dropped(task.policies[merged])]
    return list(dict.fromkeys(listed))


def _best_ranking(task: Evidence) -> str | None:
    gains = {}
    for policy in shallow(task.layers, "drop"):
        ranked, control = task.arm(policy), task.arm(drawn(policy))
        if ranked is not None and control is not None:
            gains[ranked] = _gain(task, ranked, control)
    return max(gains, key=lambda arm: gains[arm], default=None)


def _best_merge(task: Evidence) -> str | None:
    merged = _arms(task, shallow(task.layers, "merge"))
    return max(merged, key=lambda arm: float(task.scores["calibration", arm].mean()), default=None)


def _gain(task: Evidence, arm: str, control: str) -> float:
    return float((task.scores["calibration", arm] - task.scores["calibration", control]).mean())


def _draws(task: Evidence, count: int) -> list[npt.NDArray[np.int64]]:
    return sample_draws(count, task.clusters, DRAWS, SEED)


def _cliff(task: Evidence) -> int:
    layer = cliff_layer(task.changed.mean(0), range(task.layers), CHANGED)
    return task.layers if layer is None else layer


def _layer(layer: int, layers: int) -> str:
    return "none" if layer == layers else str(layer)


def _short(task: str) -> str:
    return task.removeprefix("scenes-")


def _percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _points(gain: float, low: float, high: float) -> str:
    return f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
