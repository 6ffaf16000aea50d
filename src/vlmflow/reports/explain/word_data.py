"""What words read, and who reads a region: rows of attention, packed to travel inside a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmflow.escape_invisible import shown
from vlmflow.reports.explain.packing import packed, with_codes
from vlmflow.reports.explain.word_items import Item, shares_of_items, word_items
from vlmflow.result.text_attention import TextAttention, by_nearness

if TYPE_CHECKING:
    from vlmflow.lvlm.grids import IntArray
    from vlmflow.result.information_flow import InformationFlow

MOST_BYTES = 600_000
"""Of a page: the words' maps. Those nearest to the border of question and answer come first."""

MOST_SHARES = 150_000
"""Numbers that say what words read of each other: layers x words x items."""

TOKEN_CHARACTERS = 60


def word_data(flow: InformationFlow, room: int) -> dict[str, Any] | None:
    """Pack what the page shows of the words; None where the result holds nothing of them.

    Every shown word has its shares of the whole sequence, item by item; as many as fit have their
    map over the image tokens, in 16 or 8 bits where all do, else in 4. All of it takes at most
    ``room`` bytes where that can be.
    """
    attention = flow.text_attention
    if attention is None or not attention.rows.size:
        return None
    order = by_nearness(flow.layout)
    order = order[np.isin(order, attention.rows)]
    shown_rows = order[: _words_that_fit(flow.layers)]
    items = word_items(flow.layout, shown_rows)
    readers = np.sort(shown_rows)
    chosen = np.searchsorted(attention.rows, readers)
    shares: dict[str, Any] = {}
    with_codes(shares, "shares", shares_of_items(items, attention.values[:, chosen]), 16)
    places = {int(position): number for number, position in enumerate(readers)}
    data: dict[str, Any] = {
        "items": [_plain(flow, item, places) for item in items],
        "shares": packed(shares),
        "unshown": int(flow.layout.text_rows.size - len(readers)),
    }
    room = min(MOST_BYTES, room - len(json.dumps(data, ensure_ascii=False).encode()))
    maps: dict[int, Any] = {}
    for bits in (16, 8, 4):
        maps = _maps(flow, attention, shown_rows, bits, room)
        if len(maps) == len(shown_rows):
            break
    return {
        **data,
        # in the order of the readers; null: not in the page
        "maps": [maps.get(int(position)) for position in readers],
        "bits": bits,
        "unmapped": len(readers) - len(maps),
    }


def _words_that_fit(layers: int) -> int:
    """Count the words whose shares of each other, and of some pieces more, fit."""
    return max(1, int(np.sqrt(MOST_SHARES / layers)) - 4)


def _maps(
    flow: InformationFlow, attention: TextAttention, order: IntArray, bits: int, room: int
) -> dict[int, Any]:
    """Pack what each word reads of the pictures, (L, P), of as many as there is room for."""
    maps: dict[int, Any] = {}
    for position in order.tolist():
        arrays: dict[str, Any] = {}
        row = attention.of(position)[:, flow.layout.image_positions]
        with_codes(arrays, "map", row, bits)
        block = packed(arrays)
        room -= len(block["bytes"]) + 100
        if room < 0:
            break
        maps[position] = block
    return maps


def _plain(flow: InformationFlow, item: Item, places: dict[int, int]) -> dict[str, Any]:
    """One item in JSON's own types."""
    tokens = [flow.layout.tokens[position] for position in item.positions]
    alone = item.kind in ("word", "answer")
    layout = flow.layout
    picture = layout.frames_label(item.image) if item.image >= 0 else ""
    first = int(np.searchsorted(layout.answer_positions, item.positions[0]))
    return {
        "kind": item.kind,
        "text": shown(tokens[0], TOKEN_CHARACTERS) if alone else picture,
        "count": len(tokens),
        "row": places.get(item.reader, -1),
        "image": item.image,
        # of an answer token: its target's number
        "target": first + 1 if item.kind == "answer" else 0,
    }
