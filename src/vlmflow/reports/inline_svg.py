"""Figures inside a page: drawings in the page's own colours, for a wide window and for a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from zlib import crc32

import matplotlib
from markupsafe import Markup, escape

from vlmflow.reports.figures.layout import PAGE, PHONE, FigureLayout
from vlmflow.reports.figures.style import figure_style
from vlmflow.reports.palette import GRID, HATCH, LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names come first that say most generally what a colour is for; some share one.
_VARIABLES = {colour: name for name, colour in reversed(LIGHT.items())} | {
    "#000000": "ink",
    "#ffffff": "paper",
    GRID: "rule",
    HATCH: "quiet",
}


def inline_figure(draw: Callable[[FigureLayout], Figure], label: str) -> Markup:
    """Return a figure as SVG elements, of which a page shows the one that fits its width.

    Texts are drawn as outlines, so that none of them can be markup; ``label`` says to a screen
    reader what is shown. Colours of the palette become the page's variables, and follow its theme.
    """
    parts = [
        Markup('<div class="{0}">{1}</div>').format(name, _svg(draw(layout), label, name))
        for name, layout in (("wide", PAGE), ("narrow", PHONE))
    ]
    return Markup("\n").join(parts)


def _svg(figure: Figure, label: str, name: str) -> Markup:
    buffer = io.StringIO()
    with figure_style(), matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "vlmflow"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Elements that are named alike in the other drawing are not this one's.
    prefix = f"{name}-{crc32(label.encode()):x}"
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"#[0-9a-f]{6}\b(?=[;\"])", _variable, svg)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]} role="img" '
        f'aria-label="{escape(label)}" fill="var(--ink)">'
    )
    return Markup(opening + svg[svg.index(">") + 1 :])


def _variable(found: re.Match[str]) -> str:
    name = _VARIABLES.get(found[0])
    return found[0] if name is None else f"var(--{name})"
