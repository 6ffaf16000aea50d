"""How one answer shows itself in a notebook: its picture with a map over it, and one sentence."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.escape_invisible import shown
from vlmflow.lvlm.geometry import paint
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.notebook import fragment
from vlmflow.result.map_colours import map_colours
from vlmflow.result.sentences import image_share_sentence

Float32Array = npt.NDArray[np.float32]

_LONGEST = 320
_PICTURES, _CHARACTERS = 4, 1000
_OPACITY = 0.75
"""Of the largest value; as the page's slider is set when it opens."""


def answer_html(
    texts: Mapping[str, str],
    layout: TokenLayout,
    pictures: Sequence[npt.NDArray[np.uint8]],
    attention_share: Float32Array,
    values: Float32Array | None,
    caption: str,
) -> str:
    """Show an answer: the first pictures under a map, question, answer and one sentence.

    Parameters
    ----------
    texts : dict
        ``model``, ``question``, ``answer`` and ``subject``, which names what is explained; escaped,
        and spelled out where invisible.
    layout, pictures, attention_share
        As in :class:`vlmflow.result.information_flow.InformationFlow`.
    values : (P,) float32, optional
        The map.
    caption : str
        What the map shows.

    Returns
    -------
    str
        A fragment of HTML that loads nothing.
    """
    copies, painted = [], {}
    for number, pixels in enumerate(pictures[:_PICTURES]):
        small = Image.fromarray(pixels)
        small.thumbnail((_LONGEST, _LONGEST))
        copies.append(np.asarray(small.convert("RGB"), dtype=np.float32))
        if values is not None and any(grid.image == number for grid in layout.grids):
            painted[number] = paint(layout.grids, values, layout, number, size=small.size)
    # One scale for all pictures.
    top = max((float(np.nanmax(shares, initial=0)) for shares in painted.values()), default=0.0)
    rows = []
    for number, colours in enumerate(copies):
        line = layout.grids_missing or "no map to show"
        if number in painted and top > 0:
            line, colours = caption, _overlaid(colours, painted[number] / np.float32(top))
        buffer = io.BytesIO()
        Image.fromarray(colours.round().astype(np.uint8)).save(buffer, "PNG")
        png = base64.b64encode(buffer.getvalue()).decode()
        rows.append({"png": png, "caption": shown(line, _CHARACTERS)})
    return fragment(
        "vlmflow.result",
        **{name: shown(text, _CHARACTERS) for name, text in texts.items()},
        sentence=image_share_sentence(attention_share, layout, texts["subject"]),
        pictures=rows,
        hidden=max(0, len(pictures) - _PICTURES),
    )


def _overlaid(colours: Float32Array, shares: Float32Array) -> Float32Array:
    """Lay map values 0..1 over a picture; what no token sees is darkened."""
    seen = np.isfinite(shares)[..., None]
    shares = np.clip(np.nan_to_num(shares), 0, 1)
    # Weak values let more of the picture through than strong ones.
    veil = (_OPACITY * (0.08 + 0.92 * np.sqrt(shares)))[..., None]
    mixed = veil * map_colours(shares) + (1 - veil) * colours
    return np.where(seen, mixed, 0.35 * colours).astype(np.float32)
