"""The result as tidy tables: one row per measurement, one column per axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmflow.flow.axes import DESTINATIONS, FLAGS
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.result import convergence

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow


def _named(names: Sequence[str], index: npt.NDArray[np.intp]) -> list[str]:
    # pandas' texts are UTF-8: lone surrogates (undecodable bytes of a command line) are spelt out
    shown = [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names]
    return [shown[number] for number in index.tolist()]


def segment_frame(flow: InformationFlow) -> pd.DataFrame:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.segment_frame`."""
    absent = (flow.attention_share == 0).all(axis=2, keepdims=True)
    share = np.where(absent, np.nan, flow.attention_share.astype(np.float64))
    layer, target, segment = np.indices(share.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "layer": layer,
            "target": target,
            "token": _named(flow.targets, target),
            "segment": _named(SEGMENTS, segment),
            "attention_share": share.ravel(),
        }
    )


def saliency_frame(flow: InformationFlow) -> pd.DataFrame:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.saliency_frame`."""
    total, mean = flow.saliency_sum, flow.saliency_mean
    absent = (flow.attention_share == 0).all(axis=2) & (total == 0).all(axis=(2, 3))
    hidden = np.broadcast_to(absent[:, :, None, None], total.shape)
    layer, target, destination, source = np.indices(total.shape).reshape(4, -1)
    return pd.DataFrame(
        {
            "layer": layer,
            "target": target,
            "token": _named(flow.targets, target),
            "source": _named(SEGMENTS, source),
            "destination": _named(DESTINATIONS, destination),
            "mean": np.where(hidden, np.nan, mean.astype(np.float64)).ravel(),
            "sum": np.where(hidden, np.nan, total.astype(np.float64)).ravel(),
        }
    )


def convergence_frame(
    flow: InformationFlow, box: Sequence[float] | None, image: int
) -> pd.DataFrame:
    """See :meth:`vlmflow.result.information_flow.InformationFlow.convergence_frame`."""
    figures = ["entropy", "top10_mass"]
    if box is not None:
        figures.append("inside_mass")
        # a bad box must be refused even where every map is flagged
        nothing, boxes = _placed(flow, np.zeros(flow.layout.image_positions.size), image)
        convergence.mass_inside(nothing, boxes, box)
    tokens = _named(flow.targets, np.arange(len(flow.targets)))
    rows: list[dict[str, Any]] = []
    for signal, maps in flow.maps.items():
        for (layer, target), flag in np.ndenumerate(flow.flags[signal]):
            values = maps[layer, target]
            row: dict[str, Any] = {
                "signal": signal,
                "layer": pd.NA if flow.about[signal].summed is not None else layer,
                "target": target,
                "token": tokens[target],
                "flag": FLAGS[flag],
            }
            if flag == 0:
                row["entropy"] = convergence.entropy(values)
                row["top10_mass"] = convergence.top_mass(values, 0.1)
                if box is not None:
                    spread, boxes = _placed(flow, values, image)
                    row["inside_mass"] = convergence.mass_inside(spread, boxes, box)
                if row["entropy"] is None:
                    row["flag"] = "empty"
            rows.append(row)
    frame = pd.DataFrame(rows, columns=["signal", "layer", "target", "token", *figures, "flag"])
    # an integer that can be missing, and figures that stay numbers even where all are missing
    frame["layer"] = frame["layer"].astype("Int64")
    frame["target"] = frame["target"].astype("int64")
    frame[figures] = frame[figures].astype("float64")
    return frame


def _placed(
    flow: InformationFlow, values: npt.NDArray[Any], image: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values with the box of each in one picture: tokens, and patches that tokens share.

    What a token gives to patches it does not keep, so that the sum stays.
    """
    own = values.astype(np.float64)
    spread, boxes = [own], [flow.token_boxes(image)]
    positions = flow.layout.image_positions
    for grid in flow.layout.grids:
        if grid.image == image and isinstance(grid, SharedGrid):
            spread.append(grid.values(own, positions).ravel())
            boxes.append(grid.boxes.reshape(-1, 4))
            own[np.searchsorted(positions, grid.positions)] = 0.0
    return np.concatenate(spread), np.concatenate(boxes)
