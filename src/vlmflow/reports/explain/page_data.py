"""The numbers of one result, packed to travel inside a page."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.escape_invisible import shown
from vlmflow.flow.axes import FLAGS
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.lvlm.layout import SEGMENTS, Segment
from vlmflow.reports.explain.combined_cells import combined_cells
from vlmflow.reports.palette import MAP_SCALE
from vlmflow.result.reading import Box
from vlmflow.result.verdict import verdict

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow

Array = npt.NDArray[Any]

OK, EMPTY = FLAGS.index("ok"), FLAGS.index("empty")

PICTURES_BYTES = 400_000
CURVES_BYTES = 700_000
TOKEN_CHARACTERS = 200


@dataclass(frozen=True)
class Packed:
    """What the page's script reads."""

    head: dict[str, Any]  # JSON: names, sizes, pictures, and the packed arrays as base64 texts
    bits: int  # Depth in which map values are stored, 16 or 8
    mapped: int  # Number of targets that have their maps in the page (the first ones)
    charted: int  # Number of targets that have their curves in the page (the first ones)


def coded(values: Array, bits: int) -> tuple[Array, npt.NDArray[np.float32]]:
    """Values >= 0 as integers against the largest of each row (last axis), on a square-root scale.

    ``value = top * (code / (2**bits - 1)) ** 2``. The square root keeps small values apart, which a
    linear code would round to 0 beside one large one. Returns the codes, and the float32 tops
    without the last axis.
    """
    levels = 2**bits - 1
    clean = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    clean = np.maximum(clean, 0.0)
    top = clean.max(axis=-1, keepdims=True, initial=0.0)
    share = np.divide(clean, top, out=np.zeros_like(clean), where=top > 0)
    codes = np.rint(np.sqrt(share) * levels).astype(np.uint8 if bits == 8 else np.uint16)
    return codes, top[..., 0].astype(np.float32)


def packed(arrays: dict[str, Array]) -> dict[str, Any]:
    """Named arrays as one compressed base64 text and an index into it."""
    index: dict[str, Any] = {}
    body = bytearray()
    for name, array in arrays.items():
        body.extend(b"\0" * (-len(body) % 8))  # typed arrays start at multiples of their width
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        index[name] = [array.dtype.name, list(array.shape), len(body)]
        body.extend(little.tobytes())
    return {"index": index, "bytes": base64.b64encode(gzip.compress(body, 6, mtime=0)).decode()}


def _with_codes(arrays: dict[str, Array], name: str, values: Array, bits: int) -> None:
    arrays[name], arrays[f"{name}.top"] = coded(values, bits)


def _encoded(picture: Array, longest: int) -> bytes:
    """Encode as PNG or JPEG, whichever is smaller: drawn scenes are as PNG, photographs as JPEG."""
    copy = Image.fromarray(picture)
    copy.thumbnail((longest, longest))
    variants = []
    for kind in ("PNG", "JPEG"):
        with io.BytesIO() as file:
            copy.save(file, kind, optimize=True, quality=85)
            variants.append(file.getvalue())
    return min(variants, key=len)


def _pictures(flow: InformationFlow) -> list[dict[str, Any]]:
    """Display copies as data addresses, made smaller until all of them fit."""
    contents: list[bytes] = []
    for longest in (1024, 768, 512, 384, 256, 160, 96, 48):
        contents = [_encoded(picture, longest) for picture in flow.pictures]
        if sum(map(len, contents)) <= PICTURES_BYTES:
            break
    return [
        {
            "source": _data_address(content),
            "width": int(width),
            "height": int(height),
            "frames": flow.layout.frames_label(image),
        }
        for image, (content, (width, height)) in enumerate(
            zip(contents, flow.layout.image_sizes, strict=True)
        )
    ]


def _data_address(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _convergence(flow: InformationFlow, charted: int) -> dict[str, Array]:
    """Entropy and top-10 % mass as (layers, targets) arrays per signal, 0 where undefined."""
    frame = flow.convergence_frame()
    arrays: dict[str, Array] = {}
    for signal in flow.signals:
        rows = frame[(frame["signal"] == signal) & (frame["target"] < charted)]
        # a signal summed over layers has one row of figures and no layer
        layers = rows["layer"].fillna(0).to_numpy(dtype=np.int64)
        targets = rows["target"].to_numpy(dtype=np.int64)
        for column in ("entropy", "top10_mass"):
            values = np.zeros((flow.maps[signal].shape[0], charted))
            values[layers, targets] = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
            _with_codes(arrays, f"{column}.{signal}", values, 16)
    return arrays


def _curves(flow: InformationFlow, charted: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name in ("attention_share", "saliency_mean", "saliency_sum"):
        values = getattr(flow, name)
        if values is not None:
            _with_codes(arrays, name, values[:, :charted], 16)
    for signal in flow.signals:
        flags = flow.flags[signal][:, :charted]
        massless = ~(flow.maps[signal][:, :charted] > 0).any(axis=-1)
        # a map without a positive value draws nothing, whatever its flag says
        shown_flags = np.where((flags == OK) & massless, EMPTY, flags)
        arrays[f"flags.{signal}"] = shown_flags.astype(np.int8)
    arrays.update(_convergence(flow, charted))
    positions = flow.layout.image_positions
    arrays["positions"] = positions.astype(np.int32)
    for number, grid in enumerate(flow.layout.grids):
        columns = np.searchsorted(positions, grid.positions)
        arrays[f"grid{number}.columns"] = columns.astype(np.int32)
        arrays[f"grid{number}.boxes"] = grid.boxes.astype(np.float32)
        if isinstance(grid, SharedGrid):
            arrays[f"grid{number}.looks"] = grid.looks.astype(np.float32)
    for image, size in enumerate(flow.layout.image_sizes):
        own_grids = [grid for grid in flow.layout.grids if grid.image == image]
        if len(own_grids) > 1:
            cells = combined_cells(own_grids, size)
            arrays[f"cells{image}.x"] = cells.x.astype(np.float32)
            arrays[f"cells{image}.y"] = cells.y.astype(np.float32)
            arrays[f"cells{image}.columns"] = cells.grid_columns
            arrays[f"cells{image}.rows"] = cells.grid_rows
    return arrays


def _maps(flow: InformationFlow, targets: Iterable[int], bits: int, room: int) -> list[Any]:
    """Packed maps of the first targets, as many as there is room for."""
    kept: list[Any] = []
    for target in targets:
        arrays: dict[str, Array] = {}
        for signal in flow.signals:
            _with_codes(arrays, signal, flow.maps[signal][:, target], bits)
        block = packed(arrays)
        room -= len(block["bytes"]) + 100 * len(arrays)
        if room < 0:
            break
        kept.append(block)
    return kept


def _charted(flow: InformationFlow) -> int:
    """Count the targets whose curves fit (nearly always all of them)."""
    layers, targets, segments = flow.attention_share.shape
    per_target = layers * (5 * 2 * segments + 3 * 4 + 5 * len(flow.signals))
    return max(1, min(int(targets), CURVES_BYTES // max(1, int(per_target))))


def _verdict(
    flow: InformationFlow, target: int, regions: Mapping[str, Box] | None
) -> dict[str, Any]:
    said = verdict(flow, target, regions)
    box = None
    if said.reading is not None:
        box = [said.reading.image, *(round(edge, 2) for edge in said.reading.box)]
    return {"headline": said.headline, "picture": said.picture, "box": box}


def page_data(flow: InformationFlow, room: int, regions: Mapping[str, Box] | None = None) -> Packed:
    """Everything the page's script needs, in at most ``room`` bytes wherever that can be.

    Pictures shrink first; maps are stored in 16 bits where those of all targets fit, else in 8, for
    as many targets as fit, in the order whole answer, first token, second token, ...
    """
    charted = _charted(flow)
    layout = flow.layout
    subject = "" if flow.words is None else flow.subject
    counts = [layout.positions_of(Segment(number)).size for number in range(len(SEGMENTS))]
    head: dict[str, Any] = {
        "layers": int(flow.attention_share.shape[0]),
        "segments": list(SEGMENTS),
        "counts": [int(count) for count in counts],
        "subject": subject,
        "targets": [
            subject or "whole answer",
            *(shown(t, TOKEN_CHARACTERS) for t in flow.targets[1:]),
        ],
        "tokens": [shown(token, TOKEN_CHARACTERS) for token in flow.answer_tokens],
        "signals": list(flow.signals),
        "about": {
            signal: {
                "label": shown(about.label, TOKEN_CHARACTERS),
                "summary": shown(about.summary, 2_000),
                "source": shown(about.source, 2_000),
                "colour": about.colour,
                "summed": about.summed,
                "whole": about.whole,
            }
            for signal, about in flow.about.items()
        },
        "pictures": _pictures(flow),
        "verdicts": [_verdict(flow, target, regions) for target in range(charted)],
        "mapScale": MAP_SCALE.capitalize(),
        "grids": [
            {
                "image": int(grid.image),
                "rows": grid.shape[0],
                "columns": grid.shape[1],
                "kind": shown(grid.kind, TOKEN_CHARACTERS),
                "how": shown(grid.how, 2_000) if isinstance(grid, SharedGrid) else "",
            }
            for grid in layout.grids
        ],
        "gridsMissing": shown(layout.grids_missing, 2_000),
        "curves": packed(_curves(flow, charted)),
    }
    room -= len(head["curves"]["bytes"]) + sum(len(p["source"]) for p in head["pictures"])
    room -= sum(2 * len(str(text).encode()) for text in head["targets"] + head["tokens"]) + 20_000
    room -= sum(len(str(said).encode()) for said in head["verdicts"])
    bits, maps = 16, _maps(flow, range(charted), 16, room)
    if len(maps) < charted:
        bits, maps = 8, _maps(flow, range(charted), 8, room)
    head |= {"bits": bits, "charted": charted, "maps": maps}
    return Packed(head, bits, len(maps), charted)
