"""The sequence as a reader meets it: words one by one, and in one piece what is no word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.lvlm.grids import IntArray
from vlmflow.lvlm.layout import Segment, TokenLayout


@dataclass(frozen=True)
class Item:
    """One piece of the sequence.

    Parameters
    ----------
    kind : str
        ``"word"`` of the question or ``"answer"`` token, which stand alone; or one of the pieces
        that hold several tokens: ``"before"`` the first picture, ``"picture"``, ``"marks"``
        between the parts of one picture, ``"earlier"`` words and ``"later"`` answer tokens that
        are not shown one by one.
    positions : (n,) int64
        Its positions, in order.
    reader : int
        The position whose attention says what it reads; -1 where none is shown.
    image : int
        Of a picture: which one; -1 where that is not known, or it is none.
    """

    kind: str
    positions: IntArray
    reader: int = -1
    image: int = -1


def word_items(layout: TokenLayout, readers: IntArray) -> list[Item]:
    """Cut a sequence, padding left out, into what a page shows of it, in order.

    ``readers`` are the positions whose attention is shown. Words without one, and answer tokens
    without one, are gathered, neighbours into one piece.
    """
    images = _image_of_positions(layout)
    shown = set(readers.tolist())
    names: list[tuple[str, int, int]] = []  # kind, reader and picture of every position
    for position, segment in enumerate(layout.segments.tolist()):
        image = int(images[position])
        if segment == Segment.PAD:
            names.append(("", -1, -1))
        elif segment == Segment.SYSTEM:
            names.append(("before", -1, -1))
        elif segment == Segment.IMAGE:
            names.append(("picture", -1, image))
        elif image >= 0:
            names.append(("marks", -1, image))
        elif segment == Segment.USER:
            alone = position in shown
            names.append(("word", position, -1) if alone else ("earlier", -1, -1))
        else:
            alone = position - 1 in shown
            names.append(("answer", position - 1, -1) if alone else ("later", -1, -1))
    pieces: dict[tuple[object, ...], list[int]] = {}
    run = 0
    for position, (kind, reader, image) in enumerate(names):
        if position and names[position - 1] != names[position]:
            run += 1
        if kind:
            # what belongs to one picture is one piece, wherever it lies
            key = (kind, image) if image >= 0 else (kind, reader, run)
            pieces.setdefault(key, []).append(position)
    return [
        Item(*(names[places[0]][:1]), np.array(places), *names[places[0]][1:])
        for places in pieces.values()
    ]


def _image_of_positions(layout: TokenLayout) -> npt.NDArray[np.int64]:
    """Say which picture each position belongs to, between its tokens, too; -1: none."""
    images = np.full(len(layout), -1)
    for grid in layout.grids:
        images[grid.positions.ravel()] = grid.image
    for image in range(len(layout.image_sizes)):
        places = np.flatnonzero(images == image)
        if places.size:
            between = images[places[0] : places[-1] + 1]
            between[between == -1] = image
    return images


def shares_of_items(items: list[Item], values: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Sum attention, (L, K, N), over the positions of every item: (L, K, I)."""
    parts = [values[..., item.positions].sum(-1, dtype=np.float32) for item in items]
    return np.stack(parts, axis=-1)
