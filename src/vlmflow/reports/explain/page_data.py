"""The numbers of one result, packed to travel inside a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmflow.escape_invisible import shown
from vlmflow.lvlm.layout import SEGMENTS, Segment
from vlmflow.reports.explain.compared import compared_data, subject
from vlmflow.reports.explain.map_data import (
    TOKEN_CHARACTERS,
    names,
    packed_maps,
    packed_pictures,
    places,
)
from vlmflow.reports.explain.packing import Array, packed, with_codes
from vlmflow.reports.explain.word_data import word_data
from vlmflow.reports.palette import MAP_SCALE
from vlmflow.result.reading import Box
from vlmflow.result.shown_map import shown_map
from vlmflow.result.verdict import verdict

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow
    from vlmflow.result.map_trust import Trust

CURVES_BYTES = 700_000
RESERVED = 3
"""Targets whose maps come before those of words, where there is not room for all."""


@dataclass(frozen=True)
class Packed:
    """What the page's script reads."""

    head: dict[str, Any]  # JSON: names, sizes, pictures, and the packed arrays as base64 texts
    bits: int  # Depth in which map values are stored, 16 or 8
    mapped: int  # Number of targets that have their maps in the page (the first ones)
    charted: int  # Number of targets that have their curves in the page (the first ones)


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
            with_codes(arrays, f"{column}.{signal}", values, 16)
    return arrays


def _curves(flow: InformationFlow, charted: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name in ("attention_share", "saliency_mean", "saliency_sum"):
        values = getattr(flow, name)
        if values is not None:
            with_codes(arrays, name, values[:, :charted], 16)
    arrays.update(_convergence(flow, charted))
    arrays.update(places(flow, charted))
    return arrays


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


def _shown(flow: InformationFlow) -> str:
    """Name the signal that the page opens with; empty where there is none."""
    chosen = shown_map(flow.about, flow.flags, flow.attention_share)
    return next(iter(flow.signals), "") if chosen is None else chosen[0]


def _truncated(flow: InformationFlow) -> dict[str, Any] | None:
    if flow.truncated is None:
        return None
    seen = flow.truncated.seen
    return {
        "seen": packed({"seen": seen.astype(np.uint8)}),
        "counts": [int(count) for count in seen.sum(axis=1)],
    }


def _tested(tested: Trust) -> dict[str, Any]:
    return {
        **tested.to_json(),
        "signal": shown(tested.signal, TOKEN_CHARACTERS),
        "replacement": shown(tested.replacement, TOKEN_CHARACTERS),
        "says": shown(str(tested), 2_000),
        "steps": tested.steps,
        "areas": list(tested.curves.areas),
        "difference": tested.difference,
        "limit": tested.limit,
    }


def page_data(
    flow: InformationFlow,
    room: int,
    regions: Mapping[str, Box] | None = None,
    other: InformationFlow | None = None,
) -> Packed:
    """Everything the page's script needs, in at most ``room`` bytes wherever that can be.

    Pictures shrink first; maps are stored in 16 bits where those of all targets fit, else in 8, for
    as many targets as fit, in the order whole answer, first token, second token, ... The maps of
    ``other`` take two fifths of what the pictures and curves of ``flow`` leave, at most.
    """
    charted = _charted(flow)
    layout = flow.layout
    counts = [layout.positions_of(Segment(number)).size for number in range(len(SEGMENTS))]
    head: dict[str, Any] = {
        **names(flow),
        **subject(flow),
        "segments": list(SEGMENTS),
        "counts": [int(count) for count in counts],
        "tokens": [shown(token, TOKEN_CHARACTERS) for token in flow.answer_tokens],
        "pictures": packed_pictures(flow),
        "shown": _shown(flow),
        "verdicts": [_verdict(flow, target, regions) for target in range(charted)],
        "truncated": _truncated(flow),
        "trust": [_tested(tested) for tested in flow.trust],
        "mapScale": MAP_SCALE.capitalize(),
        "curves": packed(_curves(flow, charted)),
    }
    room -= len(head["curves"]["bytes"]) + sum(len(p["source"]) for p in head["pictures"])
    room -= sum(2 * len(str(text).encode()) for text in head["targets"] + head["tokens"]) + 20_000
    room -= sum(len(str(said).encode()) for said in head["verdicts"])
    head["other"] = None if other is None else compared_data(flow, other, 2 * room // 5)
    room -= len(json.dumps(head["other"], ensure_ascii=False).encode())
    first = sum(len(block["bytes"]) for block in packed_maps(flow, [0], 8, room))
    head["words"] = word_data(flow, room - RESERVED * first)
    room -= len(json.dumps(head["words"], ensure_ascii=False).encode())
    bits, maps = 16, packed_maps(flow, range(charted), 16, room)
    if len(maps) < charted:
        bits, maps = 8, packed_maps(flow, range(charted), 8, room)
    head |= {"bits": bits, "charted": charted, "maps": maps}
    return Packed(head, bits, len(maps), charted)
