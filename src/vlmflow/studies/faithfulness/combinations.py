"""Combinations of maps: tried on calibration samples, one of them frozen and reported on others."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations as pairs_of
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.combined import SCALES, Combined
from vlmflow.flow.signals.signal import Signal
from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.studies.faithfulness.choice import LayerChoice, Tried
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings

if TYPE_CHECKING:
    import pandas as pd

BEST = 4
"""Signals that are combined: those whose maps come out best on the calibration samples."""

SUMS = 4
"""Sums over the first layers that are tried of each of them, the ends evenly spaced."""


@dataclass(frozen=True)
class Combination:
    """A map that was tried on the calibration samples: a single one, or a combination of several.

    Mean insertion minus deletion with its bootstrap 95 % interval.
    """

    map: str  # A signal, as ``--signals`` takes it; of a single one its part of a combination
    is_single: bool
    difference: float
    low: float
    high: float
    defined: float  # Share of these samples in which the map ranks anything
    chosen: bool  # The best single map, or the best combination


def singles(
    named: Mapping[str, Signal], frozen: Mapping[str, int | None]
) -> dict[str, tuple[str, int | None]]:
    """Return every signal of the shared passes as a part of a combination: name -> part, layer."""
    return {
        name: (signal.title if frozen[name] is None else f"{signal.title}:{frozen[name]}",
               frozen[name])
        for name, signal in named.items()
        if signal.in_one_pass
    }  # fmt: skip


def candidates(
    named: Mapping[str, Signal],
    tried: Mapping[str, Sequence[int | None]],
    frozen: Mapping[str, int | None],
    calibration: Sequence[Tried],
) -> dict[str, Signal]:
    """List the combinations that are tried, by the names of their maps.

    Of the :data:`BEST` signals: every pair on each scale, and of those with a map per layer the sum
    of the first layers up to :data:`SUMS` of the layers tried.
    """
    parts = singles(named, frozen)
    means = {name: _values(calibration, name, tried[name].index(frozen[name])).mean()
             for name in parts}  # fmt: skip
    best = sorted(parts, key=lambda name: -means[name])[:BEST]
    candidates = [
        Combined(f"{parts[one][0]}+{parts[other][0]}", scale)
        for one, other in pairs_of(best, 2)
        for scale in SCALES
    ]
    for name in best:
        ends = [layer for layer in tried[name] if layer]
        places = np.linspace(0, len(ends) - 1, min(SUMS, len(ends))).round().astype(int)
        candidates += [
            Combined(f"{named[name].title}:0-{ends[place]}") for place in dict.fromkeys(places)
        ]
    return ExplainOptions(signals=candidates).named if candidates else {}


def combinations_tried(
    parts: Mapping[str, tuple[str, int | None]],
    titles: Mapping[str, str],
    tried: Mapping[str, Sequence[int | None]],
    calibration: Sequence[Tried],
    searched: Sequence[Tried],
    settings: FaithfulnessSettings,
) -> list[Combination]:
    """Put single maps and combinations, the best first, into one table.

    ``parts`` are :func:`singles`, ``titles`` those of :func:`candidates`, by the names of maps.
    ``searched`` are the same samples as ``calibration``, as far as they could be measured.
    """
    rows = []
    for name, (part, layer) in parts.items():
        place = list(tried[name]).index(layer)
        rows.append(_row(part, True, calibration, name, place, settings))
    rows += [_row(title, False, searched, name, 0, settings) for name, title in titles.items()]
    rows.sort(key=lambda row: -row.difference)
    chosen = []
    for kind in (True, False):
        own = [row for row in rows if row.is_single == kind]
        usable = [row for row in own if row.defined > 0.5] or own
        chosen += usable[:1]
    return [
        Combination(**{**vars(row), "chosen": any(row is one for one in chosen)}) for row in rows
    ]


def best_of(rows: Sequence[Combination], *, single: bool) -> str | None:
    """Return the map that was chosen of one kind; None without any."""
    return next((row.map for row in rows if row.chosen and row.is_single == single), None)


def combined_lines(
    combinations: Sequence[Combination], combined: tuple[str, str], pairs: pd.DataFrame
) -> list[str]:
    """Say what the chosen combination is worth beside the best single map.

    Both, whose names are ``combined``, were chosen on the calibration samples; ``pairs`` compares
    all maps on the test samples (:func:`~vlmflow.studies.faithfulness.tables.pair_frame`).
    """
    name, single = combined
    rows = {row.map: row for row in combinations if row.chosen}
    tried = sum(not row.is_single for row in combinations)
    best, alone = (
        best_of(combinations, single=False),
        best_of(combinations, single=True),
    )
    assert best is not None
    assert alone is not None
    lines = [
        f"Of {tried} combinations of the signals' maps, tried on the calibration samples, {best} "
        f"came out best ({rows[best].difference:+.3f}); of the single maps, {alone} "
        f"({rows[alone].difference:+.3f})."
    ]
    for pair in pairs.to_dict("records"):
        if {pair["map"], pair["other"]} != {name, single}:
            continue
        sign = 1 if pair["map"] == name else -1
        low, high = sorted((sign * pair["low"], sign * pair["high"]))
        lines.append(
            f"On the test samples, under {pair['replacement']}, the combination's insertion minus "
            f"deletion differs by {sign * pair['difference']:+.3f} ({low:+.3f} to {high:+.3f}; "
            f"p = {pair['p holm']:.3f}, corrected for all pairs of maps) from the single map's."
        )
    return [*lines, f"The combination is a signal: --signals {shlex.quote(best)}"]


def _values(samples: Sequence[Tried], name: str, place: int) -> Any:
    return np.array([sample.measured[name]["differences"][place] for sample in samples])


def _row(
    shown: str,
    is_single: bool,
    samples: Sequence[Tried],
    name: str,
    place: int,
    settings: FaithfulnessSettings,
) -> Combination:
    values = _values(samples, name, place)[:, None]
    defined = np.mean([sample.measured[name]["defined"][place] for sample in samples])
    clusters = [sample.cluster for sample in samples]
    low, high = mean_interval(values, clusters, settings.draws, settings.seed)
    mean = float(values.mean())
    return Combination(shown, is_single, mean, float(low[0]), float(high[0]), float(defined), False)


def chosen_layers(choices: Sequence[LayerChoice]) -> dict[str, int | None]:
    """Return the chosen layer of every signal."""
    return {choice.signal: choice.layer for choice in choices if choice.chosen}
