"""The tables of a study of faithfulness, every figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmflow.statistics.bootstrap import mean_interval, percentile_interval, sample_draws
from vlmflow.statistics.intervals import mean_estimate
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value
from vlmflow.studies.faithfulness.maps import RANDOM
from vlmflow.studies.faithfulness.measurements import Faithfulness, SampleFaithfulness
from vlmflow.trust.controls import CONTROLS
from vlmflow.trust.localisation import EMPTY, HIT, RESULTS, TIE
from vlmflow.trust.variants import PROBABILITY, SCORES, curves_of

FloatArray = npt.NDArray[np.float64]

FIGURES = ("insertion", "deletion", "difference")

Draws = tuple[int, int]
"""Number and seed of the bootstraps' draws."""


def areas(measured: Sequence[Faithfulness], replacement: str, score: str) -> FloatArray:
    """Return insertion, deletion and their difference of every sample and map: (n, M, 3).

    NaN for a sample without this score; the maps of a sample have it all or none, since both ends
    of their curves are the same.
    """
    rows = []
    for own in measured:
        row = []
        for means in own.means[replacement]:
            curves = curves_of(score, means)
            row.append([np.nan] * 3 if curves is None else [*curves.areas, curves.difference])
        rows.append(row)
    return np.array(rows)


def map_frame(
    measured: Sequence[Faithfulness],
    clusters: Sequence[str],
    layers: Mapping[str, int | None],
    draws: Draws,
) -> pd.DataFrame:
    """Give insertion, deletion and their difference, one row per replacement, score and map.

    Each with its bootstrap 95 % interval (pictures drawn whole); ``over random`` is the mean of the
    paired differences to the random map, with its interval, ``p`` the sign-flip test of them and
    ``p holm`` the same, adjusted for all maps of this replacement and score. ``n`` samples count,
    ``left out`` do not have the score, and of ``undefined`` ones the map ranked nothing.
    """
    maps, rows = measured[0].maps, []
    flags = np.array([own.flags for own in measured]) != "ok"
    reference = maps.index(RANDOM)
    for replacement in measured[0].means:
        for score in SCORES:
            values = areas(measured, replacement, score)
            kept = ~np.isnan(values[:, 0, 0])
            own, groups = values[kept], _of(clusters, kept)
            gains = own[:, :, 2] - own[:, reference, None, 2]
            tested = _tested(gains, groups, [m for m in range(len(maps)) if m != reference], draws)
            both = np.concatenate([own, gains[:, :, None]], axis=2).reshape(len(own), 4 * len(maps))
            ends = _interval(both, groups, draws)
            means = _mean(both)
            for number, name in enumerate(maps):
                row: dict[str, Any] = {
                    "replacement": replacement,
                    "score": score,
                    "map": name,
                    "kind": "control" if name in CONTROLS else "signal",
                    "layer": layers.get(name),
                }
                for place, figure in enumerate((*FIGURES, "over random")):
                    column = number * 4 + place
                    row[figure] = means[column]
                    row[f"{figure} low"], row[f"{figure} high"] = ends[:, column]
                row["p"], row["p holm"] = tested.get(number, (np.nan, np.nan))
                row["n"], row["left out"] = int(kept.sum()), int((~kept).sum())
                row["undefined"] = int(flags[kept, number].sum())
                rows.append(row)
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    return frame


def pair_frame(
    measured: Sequence[Faithfulness], clusters: Sequence[str], draws: Draws
) -> pd.DataFrame:
    """Compare all maps in pairs by mean probability, one row per replacement and pair.

    ``difference`` is insertion minus deletion of ``map`` less that of ``other``, paired over
    samples, with its bootstrap 95 % interval; ``p holm`` is adjusted for all pairs of a
    replacement.
    """
    maps, rows = measured[0].maps, []
    pairs = list(combinations(range(len(maps)), 2))
    for replacement in measured[0].means:
        values = areas(measured, replacement, PROBABILITY)[:, :, 2]
        gains = np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=1)
        low, high = _interval(gains, clusters, draws)
        tested = _tested(gains, clusters, range(len(pairs)), draws)
        for number, (first, second) in enumerate(pairs):
            p, holm = tested[number]
            rows.append(
                {
                    "replacement": replacement,
                    "map": maps[first],
                    "other": maps[second],
                    "difference": float(gains[:, number].mean()),
                    "low": low[number],
                    "high": high[number],
                    "p": p,
                    "p holm": holm,
                    "n": len(gains),
                }
            )
    return pd.DataFrame(rows)


def picture_frame(
    measured: Sequence[Faithfulness], clusters: Sequence[str], draws: Draws
) -> pd.DataFrame:
    """Say what the answer is worth with the picture, with what replaces it, and with no token."""
    rows = []
    without = np.array([own.without for own in measured])
    for replacement in measured[0].means:
        ends = np.array([own.means[replacement][0, 0, 0, [0, -1]] for own in measured])
        values = np.column_stack([ends[:, 1], ends[:, 0], without])
        row: dict[str, Any] = {"replacement": replacement}
        for place, name in enumerate(("with picture", "replaced", "no image token")):
            kept = ~np.isnan(values[:, place])
            low, high = _interval(values[kept][:, [place]], _of(clusters, kept), draws)
            row[name] = _mean(values[kept][:, [place]])[0]
            row[f"{name} low"], row[f"{name} high"] = low[0], high[0]
        rows.append(row | {"n": len(measured)})
    return pd.DataFrame(rows)


def curve_frame(measured: Sequence[Faithfulness]) -> pd.DataFrame:
    """Give the mean curves of every map, by mean probability, one row per step."""
    parts = []
    for replacement in measured[0].means:
        means = np.mean([own.means[replacement][:, 0] for own in measured], axis=0)
        for name, (insertion, deletion) in zip(measured[0].maps, means, strict=True):
            parts.append(
                pd.DataFrame(
                    {
                        "replacement": replacement,
                        "map": name,
                        "share": np.linspace(0, 1, len(insertion)),
                        "insertion": insertion,
                        "deletion": deletion,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def place_frame(
    measured: Sequence[Faithfulness], clusters: Sequence[str], draws: Draws
) -> pd.DataFrame:
    """Say where maps lie, one row per map, over the samples with a box; empty without any.

    Shares of strict hits, with ties and empty maps counted beside them; energy in the box; TAM's
    Obj-IoU and Func-IoU over the samples whose answers have such words, and the harmonic mean of
    the two.
    """
    has_box = np.array([own.places is not None for own in measured])
    if not has_box.any():
        return pd.DataFrame()
    values = np.stack([own.places for own in measured if own.places is not None])
    groups, rows = _of(clusters, has_box), []
    for number, name in enumerate(measured[0].maps):
        own = values[:, number]
        hits = (own[:, 0] == RESULTS.index(HIT)).astype(float)
        share = mean_estimate(hits.tolist(), groups, draws=draws[0], seed=draws[1])
        row: dict[str, Any] = {
            "map": name,
            "hits": share.value,
            "hits low": share.low,
            "hits high": share.high,
            "ties": int((own[:, 0] == RESULTS.index(TIE)).sum()),
            "empty": int((own[:, 0] == RESULTS.index(EMPTY)).sum()),
            "n": len(own),
        }
        for column, figure in ((1, "energy"), (2, "object iou"), (3, "function iou")):
            kept = ~np.isnan(own[:, column])
            low, high = _interval(own[kept][:, [column]], _of(groups, kept), draws)
            row[figure] = _mean(own[kept][:, [column]])[0]
            row[f"{figure} low"], row[f"{figure} high"] = low[0], high[0]
            row[f"{figure} n"] = int(kept.sum())
        rows.append(row | _f1(own[:, 2:], groups, draws))
    return pd.DataFrame(rows)


def agreement_frame(
    measured: Sequence[Faithfulness], clusters: Sequence[str], draws: Draws
) -> pd.DataFrame:
    """Give the mean rank correlation of every pair of maps, and over how many samples."""
    values, maps, rows = np.stack([own.agreement for own in measured]), measured[0].maps, []
    for first, second in combinations(range(len(maps)), 2):
        own = values[:, first, second]
        row: dict[str, Any] = {"map": maps[first], "other": maps[second]}
        rows.append(row | _known_mean("rank correlation", own, clusters, draws))
    return pd.DataFrame(rows)


def drawn_frame(
    drawn: Mapping[str, Sequence[Mapping[str, float | None] | None]],
    signals: Sequence[str],
    clusters: Sequence[str],
    draws: Draws,
) -> pd.DataFrame:
    """Give the mean rank correlation of maps under drawn weights with the trained model's.

    ``drawn`` holds the first of the samples that ``clusters`` are of.
    """
    rows = []
    for name in signals:
        for stage, samples in drawn.items():
            given = [own[name] for own in samples if own is not None]
            values = [None if own is None else own[name] for own in samples]
            ranks = np.array([np.nan if value is None else value for value in values])
            row: dict[str, Any] = {"map": name, "weights drawn": stage}
            row |= _known_mean("rank correlation", ranks, clusters[: len(ranks)], draws)
            row["constant"], row["failed"] = len(given) - row["n"], len(samples) - len(given)
            rows.append(row)
    return pd.DataFrame(rows)


def cost_frame(costs: Sequence[Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """Give what every signal takes, mean over the timed samples."""
    rows = []
    for name in costs[0] if costs else ():
        own = pd.DataFrame([cost[name] for cost in costs])
        means = own.mean().to_dict()
        times = float((own["seconds"] / own["plain"]).mean())
        rows.append({"map": name, **means, "times a forward pass": times, "n": len(own)})
    return pd.DataFrame(rows)


def sample_frame(samples: Sequence[SampleFaithfulness]) -> pd.DataFrame:
    """Give one row per sample: question, answer, score, and insertion minus deletion of every map.

    ``batch`` is how many pictures, or subsets of tokens, went to a forward pass.
    """
    rows = []
    for own in samples:
        row: dict[str, Any] = {
            "key": own.sample.key,
            "group": own.sample.group,
            "question": own.sample.question,
            "reference": " | ".join(own.sample.references),
            "answer": None if own.failure else own.answer,
            "score": own.score,
            "batch": None if own.measured is None else own.measured.batch,
            "failure": own.failure,
        }
        if own.measured is not None:
            for replacement in own.measured.means:
                values = areas([own.measured], replacement, PROBABILITY)[0, :, 2]
                row |= {
                    f"{replacement} {name}": value
                    for name, value in zip(own.measured.maps, values, strict=True)
                }
        rows.append(row)
    return pd.DataFrame(rows).astype({"batch": "Int64"})


def _tested(
    gains: FloatArray, clusters: Sequence[str], columns: Sequence[int], draws: Draws
) -> dict[int, tuple[float, float]]:
    """Test columns of paired differences: p-value of each, alone and adjusted for all."""
    if not len(gains):
        return dict.fromkeys(columns, (np.nan, np.nan))
    p_values = [sign_flip_p_value(gains[:, column], clusters, seed=draws[1]) for column in columns]
    adjusted = holm_adjusted(p_values)
    return dict(zip(columns, zip(p_values, adjusted, strict=True), strict=True))


def _known_mean(
    name: str, values: FloatArray, clusters: Sequence[str], draws: Draws
) -> dict[str, Any]:
    """Return mean, interval and number of the values that are known: not NaN."""
    kept = ~np.isnan(values)
    own = values[kept][:, None]
    low, high = _interval(own, _of(clusters, kept), draws)
    return {name: _mean(own)[0], f"{name} low": low[0], f"{name} high": high[0], "n": len(own)}


def _f1(ious: FloatArray, clusters: Sequence[str], draws: Draws) -> dict[str, float]:
    """Return the harmonic mean of two means, (n, 2) with NaN where one is not defined."""

    def harmonic(own: FloatArray) -> float:
        defined = [column[~np.isnan(column)] for column in own.T]
        if not all(column.size for column in defined):
            return np.nan
        first, second = (float(column.mean()) for column in defined)
        return 2 * first * second / (first + second) if first + second > 0 else np.nan

    drawn = [harmonic(ious[numbers]) for numbers in sample_draws(len(ious), clusters, *draws)]
    drawn = [value for value in drawn if not np.isnan(value)]
    low, high = percentile_interval(drawn) if drawn else (np.nan, np.nan)
    return {"f1 iou": harmonic(ious), "f1 iou low": float(low), "f1 iou high": float(high)}


def _interval(values: FloatArray, clusters: Sequence[str], draws: Draws) -> FloatArray:
    """Return the bootstrap interval of means over samples, (n, K) -> (2, K); NaN for no sample."""
    if not len(values):
        return np.full((2, values.shape[1]), np.nan)
    return np.stack(mean_interval(values, clusters, *draws))


def _mean(values: FloatArray) -> FloatArray:
    mean: FloatArray = values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
    return mean


def _of(clusters: Sequence[str], kept: npt.NDArray[np.bool_]) -> list[str]:
    return [cluster for cluster, one in zip(clusters, kept, strict=True) if one]
