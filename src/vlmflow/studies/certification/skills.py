"""How well exit signals tell which samples need their image tokens no longer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vlmflow.statistics.bootstrap import percentile_interval, sample_draws
from vlmflow.studies.certification.findings import SignalSkill
from vlmflow.studies.certification.fitting import area_under_curve
from vlmflow.studies.certification.outcomes import FloatArray, Outcomes

DRAWS = 1000


def skills(outcomes: Outcomes, values: Mapping[str, FloatArray], seed: int) -> list[SignalSkill]:
    """Judge how well every signal tells, at every exit layer, whose answer stays as it is.

    Without any image token from the layer on, or with the least that was tried. ``values``, (n, E)
    by signal, must not have been fitted on these samples.
    """
    least = int(np.argmin(outcomes.keeps))
    draws = sample_draws(len(outcomes), outcomes.clusters, DRAWS, seed)
    groups = np.array(outcomes.groups)
    rows = []
    for name, table in values.items():
        for place, layer in enumerate(outcomes.layers):
            stays = ~outcomes.changed[:, place, least]
            column = table[:, place]
            area = area_under_curve(column, stays)
            if np.isnan(area) or np.isnan(column).any():  # one kind alone; nothing could be read
                rows.append(SignalSkill(name, layer, None, None, None, None))
                continue
            drawn = np.array([area_under_curve(column[picked], stays[picked]) for picked in draws])
            low, high = percentile_interval(drawn[~np.isnan(drawn)])
            within = _within(column, stays, groups)
            rows.append(SignalSkill(name, layer, area, float(low), float(high), within))
    return rows


def _within(values: FloatArray, stays: npt.NDArray[np.bool_], groups: npt.NDArray[np.str_]) -> (
    float | None
):  # fmt: skip
    """Mean area within kinds of question, weighted by how many pairs each has."""
    total = weighted = 0.0
    for group in np.unique(groups):
        rows = groups == group
        pairs = float(stays[rows].sum() * (~stays[rows]).sum())
        if pairs:
            total += pairs
            weighted += pairs * area_under_curve(values[rows], stays[rows])
    return weighted / total if total else None
