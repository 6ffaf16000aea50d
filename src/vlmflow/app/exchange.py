"""One question that was asked, and all that has been measured of its answer since."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmflow.app.pictures import size_of
from vlmflow.escape_invisible import shown
from vlmflow.result import parts, storage

if TYPE_CHECKING:
    from vlmflow.app.videos import UploadedVideo
    from vlmflow.result.information_flow import InformationFlow
    from vlmflow.result.reading import Box


@dataclass
class Exchange:
    """A question with its pictures, and what is known about its answer by now.

    Only the worker's thread changes it, one field at a time; the server's threads read.
    """

    pictures: tuple[Image.Image | UploadedVideo, ...]
    picture_ids: tuple[str, ...]
    question: str
    max_new_tokens: int
    regions: Mapping[str, Box] | None = None  # Of a sample: what is to be seen in it, and where
    answer_ids: tuple[int, ...] = ()
    flow: InformationFlow | None = None
    page: str = ""  # The result's part of the page, drawn anew whenever the result changes
    truncated: dict[str, Any] | None = None  # What the truncated answer cost, beside the untouched
    removal: dict[str, Any] | None = None  # The removal curve

    @property
    def size(self) -> int:
        """How much memory it takes, in bytes, nearly."""
        pixels = sum(map(size_of, self.pictures))
        if self.flow is None:
            return pixels
        flow = self.flow
        measured = sum(values.nbytes for values in flow.maps.values())
        measured += sum(copy.nbytes for copy in flow.pictures)
        if flow.text_attention is not None:
            measured += flow.text_attention.values.nbytes
        return pixels + measured + 4 * len(self.page)

    def summary(self) -> dict[str, Any]:
        """Return what the page shows of it beside the report."""
        return {
            "question": self.question,
            "pictures": list(self.picture_ids),
            "answer": None if self.flow is None else shown(self.flow.answer, 20_000),
            "truncated": self.truncated,
            "removal": self.removal,
        }

    def numbers(self) -> bytes:
        """Return all numbers as one ZIP archive.

        ``flow.json`` and ``flow.safetensors``, which ``InformationFlow.load`` reads, and what was
        measured beside them as ``truncated.json`` and ``removal.json``.
        """
        assert self.flow is not None
        files = storage.pair(*parts.take_apart(vars(self.flow)))
        for name, facts in {"truncated.json": self.truncated, "removal.json": self.removal}.items():
            if facts is not None:
                files[name] = (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode()
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
        return archive.getvalue()
