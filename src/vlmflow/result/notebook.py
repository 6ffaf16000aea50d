"""How one answer shows itself in a notebook: its picture with a map over it, and one sentence."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.escape_invisible import shown
from vlmflow.flow.axes import FLAGS
from vlmflow.lvlm.geometry import paint
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout
from vlmflow.notebook import fragment
from vlmflow.result.map_colours import map_colours
from vlmflow.result.map_info import MapInfo
from vlmflow.result.sentences import image_share_sentence

Float32Array = npt.NDArray[np.float32]

_LONGEST = 320
_PICTURES, _CHARACTERS = 4, 1000
_OPACITY = 0.75
"""Of the largest value; as the page's slider stands when it opens."""


class _Map(NamedTuple):
    """A map of the whole answer, and what it is."""

    values: Float32Array  # (P,)
    caption: str


def answer_html(
    texts: Mapping[str, str],
    layout: TokenLayout,
    pictures: Sequence[npt.NDArray[np.uint8]],
    attention_share: Float32Array,
    maps: Mapping[str, Float32Array],
    flags: Mapping[str, npt.NDArray[np.int8]],
    about: Mapping[str, MapInfo],
) -> str:
    """Show an answer: the first pictures under their map, question, answer and one sentence.

    Parameters
    ----------
    texts : dict
        ``model``, ``question`` and ``answer``; escaped, and spelled out where invisible.
    layout, pictures, attention_share, maps, flags, about
        As in :class:`vlmflow.result.information_flow.InformationFlow`.

    Returns
    -------
    str
        A fragment of HTML that loads nothing.
    """
    chosen = _best_map(attention_share, maps, flags, about)
    return fragment(
        "vlmflow.result",
        **{name: shown(text, _CHARACTERS) for name, text in texts.items()},
        sentence=image_share_sentence(attention_share, layout),
        pictures=_pictures(pictures[:_PICTURES], layout, chosen),
        hidden=max(0, len(pictures) - _PICTURES),
    )


def _best_map(
    attention_share: Float32Array,
    maps: Mapping[str, Float32Array],
    flags: Mapping[str, npt.NDArray[np.int8]],
    about: Mapping[str, MapInfo],
) -> _Map | None:
    """Choose a map over all layers, or else one of the layer that looks most at the image."""
    layer = int(attention_share[:, 0, SEGMENTS.index("image")].argmax())
    for signal in sorted(maps, key=lambda name: about[name].summed is None):
        is_sum = about[signal].summed is not None
        row = 0 if is_sum else layer
        if FLAGS[int(flags[signal][row, 0])] == "ok":
            where = "summed over layers" if is_sum else f"layer {layer}"
            return _Map(maps[signal][row, 0], f"{about[signal].label}, {where}")
    return None


def _pictures(
    pictures: Sequence[npt.NDArray[np.uint8]], layout: TokenLayout, chosen: _Map | None
) -> list[dict[str, str]]:
    """Return small copies as the base64 of PNGs with the map over them, and their captions."""
    copies, painted = [], {}
    for number, pixels in enumerate(pictures):
        small = Image.fromarray(pixels)
        small.thumbnail((_LONGEST, _LONGEST))
        copies.append(np.asarray(small.convert("RGB"), dtype=np.float32))
        if chosen is not None and any(grid.image == number for grid in layout.grids):
            painted[number] = paint(layout.grids, chosen.values, layout, number, size=small.size)
    # One scale for all pictures.
    top = max((float(np.nanmax(shares, initial=0)) for shares in painted.values()), default=0.0)
    rows = []
    for number, colours in enumerate(copies):
        caption = layout.grids_missing or "no map to show"
        if chosen is not None and number in painted and top > 0:
            caption = chosen.caption
            colours = _overlaid(colours, painted[number] / np.float32(top))
        buffer = io.BytesIO()
        Image.fromarray(colours.round().astype(np.uint8)).save(buffer, "PNG")
        png = base64.b64encode(buffer.getvalue()).decode()
        rows.append({"png": png, "caption": shown(caption, _CHARACTERS)})
    return rows


def _overlaid(colours: Float32Array, shares: Float32Array) -> Float32Array:
    """Lay map values 0..1 over a picture; what no token sees is darkened."""
    seen = np.isfinite(shares)[..., None]
    shares = np.clip(np.nan_to_num(shares), 0, 1)
    # Weak values let more of the picture through than strong ones.
    veil = (_OPACITY * (0.08 + 0.92 * np.sqrt(shares)))[..., None]
    mixed = veil * map_colours(shares) + (1 - veil) * colours
    return np.where(seen, mixed, 0.35 * colours).astype(np.float32)
