"""What a page needs to draw a result's maps: their names, values and places, and the pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmflow.escape_invisible import shown
from vlmflow.flow.axes import FLAGS
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.reports.explain.combined_cells import combined_cells
from vlmflow.reports.explain.packing import Array, packed, with_codes

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow

OK, EMPTY = FLAGS.index("ok"), FLAGS.index("empty")

PICTURES_BYTES = 400_000
TOKEN_CHARACTERS = 200


def names(flow: InformationFlow) -> dict[str, Any]:
    """Name layers, targets, signals and grids, in JSON's own types."""
    return {
        "layers": int(flow.attention_share.shape[0]),
        "targets": [
            "whole answer" if flow.words is None else flow.subject,
            *(shown(token, TOKEN_CHARACTERS) for token in flow.targets[1:]),
        ],
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
        "grids": [
            {
                "image": int(grid.image),
                "rows": grid.shape[0],
                "columns": grid.shape[1],
                "kind": shown(grid.kind, TOKEN_CHARACTERS),
                "how": shown(grid.how, 2_000) if isinstance(grid, SharedGrid) else "",
            }
            for grid in flow.layout.grids
        ],
        "gridsMissing": shown(flow.layout.grids_missing, 2_000),
    }


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


def packed_pictures(
    flow: InformationFlow, most_bytes: int = PICTURES_BYTES
) -> list[dict[str, Any]]:
    """Display copies as data addresses, made smaller until all of them fit."""
    contents: list[bytes] = []
    for longest in (1024, 768, 512, 384, 256, 160, 96, 48):
        contents = [_encoded(picture, longest) for picture in flow.pictures]
        if sum(map(len, contents)) <= most_bytes:
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


def places(flow: InformationFlow, charted: int) -> dict[str, Array]:
    """Give the flags of the first targets' maps, and where the image tokens lie."""
    arrays: dict[str, Array] = {}
    for signal in flow.signals:
        flags = flow.flags[signal][:, :charted]
        massless = ~(flow.maps[signal][:, :charted] > 0).any(axis=-1)
        # a map without a positive value draws nothing, whatever its flag says
        shown_flags = np.where((flags == OK) & massless, EMPTY, flags)
        arrays[f"flags.{signal}"] = shown_flags.astype(np.int8)
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


def packed_maps(flow: InformationFlow, targets: Iterable[int], bits: int, room: int) -> list[Any]:
    """Packed maps of the first targets, as many as there is room for."""
    kept: list[Any] = []
    for target in targets:
        arrays: dict[str, Array] = {}
        for signal in flow.signals:
            with_codes(arrays, signal, flow.maps[signal][:, target], bits)
        block = packed(arrays)
        room -= len(block["bytes"]) + 100 * len(arrays)
        if room < 0:
            break
        kept.append(block)
    return kept
