"""The maps of a second result, packed to stand beside those of the page's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmflow.escape_invisible import shown
from vlmflow.reports.explain.map_data import (
    PICTURES_BYTES,
    names,
    packed_maps,
    packed_pictures,
    places,
)
from vlmflow.reports.explain.packing import packed

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow

MOST_TARGETS = 100
SUBJECT_CHARACTERS = 300


def subject(flow: InformationFlow) -> dict[str, str]:
    """Say what a result is about, for a reader who has two before him."""
    texts = {"model": flow.model, "question": flow.question, "answer": flow.answer}
    texts["subject"] = "" if flow.words is None else flow.subject
    return {name: shown(text, SUBJECT_CHARACTERS) for name, text in texts.items()}


def compared_data(flow: InformationFlow, other: InformationFlow, room: int) -> dict[str, Any]:
    """Pack the maps of ``other`` beside those of ``flow``, in ``room`` bytes if that can be.

    Pictures that both are about are packed once: their ``source`` is empty here. Maps are stored in
    16 bits where those of all targets fit, else in 8, for as many targets as fit.
    """
    charted = min(len(other.targets), MOST_TARGETS)
    pictures = packed_pictures(other, PICTURES_BYTES // 2)
    if len(other.pictures) == len(flow.pictures):
        for own, picture, plain in zip(flow.pictures, other.pictures, pictures, strict=True):
            if np.array_equal(own, picture):
                plain["source"] = ""
    head: dict[str, Any] = {
        **names(other),
        **subject(other),
        "pictures": pictures,
        "curves": packed(places(other, charted)),
        "charted": charted,
    }
    room -= len(json.dumps(head, ensure_ascii=False).encode())
    head["bits"], head["maps"] = 16, packed_maps(other, range(charted), 16, room)
    if len(head["maps"]) < charted:
        head["bits"], head["maps"] = 8, packed_maps(other, range(charted), 8, room)
    return head
