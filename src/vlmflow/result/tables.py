"""The result as tidy tables: one row per measurement, one column per axis."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmflow.flow.axes import DESTINATIONS, FLAGS
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout
from vlmflow.result import convergence

Array = npt.NDArray[Any]


def _named(names: Sequence[str], index: npt.NDArray[np.intp]) -> list[str]:
    # pandas' texts are UTF-8: lone surrogates (undecodable bytes of a command line) are spelled out
    shown = [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names]
    return [shown[number] for number in index.tolist()]


def segment_frame(targets: Sequence[str], attention_share: Array) -> pd.DataFrame:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.segment_frame`."""
    absent = (attention_share == 0).all(axis=2, keepdims=True)
    share = np.where(absent, np.nan, attention_share.astype(np.float64))
    layer, target, segment = np.indices(share.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "layer": layer,
            "target": target,
            "token": _named(targets, target),
            "segment": _named(SEGMENTS, segment),
            "attention_share": share.ravel(),
        }
    )


def saliency_frame(
    targets: Sequence[str], attention_share: Array, total: Array, mean: Array
) -> pd.DataFrame:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.saliency_frame`."""
    absent = (attention_share == 0).all(axis=2) & (total == 0).all(axis=(2, 3))
    hidden = np.broadcast_to(absent[:, :, None, None], total.shape)
    layer, target, destination, source = np.indices(total.shape).reshape(4, -1)
    return pd.DataFrame(
        {
            "layer": layer,
            "target": target,
            "token": _named(targets, target),
            "source": _named(SEGMENTS, source),
            "destination": _named(DESTINATIONS, destination),
            "mean": np.where(hidden, np.nan, mean.astype(np.float64)).ravel(),
            "sum": np.where(hidden, np.nan, total.astype(np.float64)).ravel(),
        }
    )


def convergence_frame(
    targets: Sequence[str],
    maps: Mapping[str, Array],
    flags: Mapping[str, Array],
    summed: Collection[str],
    inside: Callable[[Array], float | None] | None,
) -> pd.DataFrame:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.convergence_frame`.

    ``summed`` names the signals that are summed over layers; ``inside`` gives the mass of a map
    inside a box, if one was given.
    """
    figures = ["entropy", "top10_mass", *(["inside_mass"] if inside is not None else [])]
    tokens = _named(targets, np.arange(len(targets)))
    rows: list[dict[str, Any]] = []
    for signal in maps:
        for (layer, target), flag in np.ndenumerate(flags[signal]):
            values = maps[signal][layer, target]
            row: dict[str, Any] = {
                "signal": signal,
                "layer": pd.NA if signal in summed else layer,
                "target": target,
                "token": tokens[target],
                "flag": FLAGS[flag],
            }
            if flag == 0:
                row["entropy"] = convergence.entropy(values)
                row["top10_mass"] = convergence.top_mass(values, 0.1)
                if inside is not None:
                    row["inside_mass"] = inside(values)
                if row["entropy"] is None:
                    row["flag"] = "empty"
            rows.append(row)
    frame = pd.DataFrame(rows, columns=["signal", "layer", "target", "token", *figures, "flag"])
    # an integer that can be missing, and figures that stay numbers even where all are missing
    frame["layer"] = frame["layer"].astype("Int64")
    frame["target"] = frame["target"].astype("int64")
    frame[figures] = frame[figures].astype("float64")
    return frame


def mass_inside(
    layout: TokenLayout, token_boxes: Array, image: int, box: Sequence[float], values: Array
) -> float | None:
    """Mass of a map inside a box of one picture; ``token_boxes`` are the tokens' own in it."""
    own = values.astype(np.float64)
    spread, boxes = [own], [token_boxes]
    positions = layout.image_positions
    for grid in layout.grids:
        if grid.image == image and isinstance(grid, SharedGrid):
            spread.append(grid.values(own, positions).ravel())
            boxes.append(grid.boxes.reshape(-1, 4))
            # What a token gives to patches it does not keep, so that the sum stays.
            own[np.searchsorted(positions, grid.positions)] = 0.0
    return convergence.mass_inside(np.concatenate(spread), np.concatenate(boxes), box)
