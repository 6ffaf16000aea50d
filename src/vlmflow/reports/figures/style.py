"""How every figure looks: fonts, colours and texts that a model cannot break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from vlmflow.escape_invisible import visible
from vlmflow.reports.palette import GREY, HATCH, LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlmflow.result.information_flow import InformationFlow

WIDTH = 7.16
"""Inches: the text width of a two-column page."""

HEAD = 0.6
"""Inches at the top of a figure that :func:`header` fills."""

# more characters than a line can hold, few enough to measure quickly
_CHARACTERS = 300
_MEASURE = TextToPath()

SEGMENT_LINES: dict[str, dict[str, Any]] = {
    "system": {"color": LIGHT["system"], "linestyle": (0, (1, 1.2)), "marker": "^"},
    "image": {"color": LIGHT["image"], "linestyle": "-", "marker": "o"},
    "user": {"color": LIGHT["user"], "linestyle": (0, (5, 1.5)), "marker": "s"},
    "answer": {"color": LIGHT["answer"], "linestyle": (0, (5, 1.2, 1, 1.2)), "marker": "D"},
}


_FONTS: tuple[Any, ...] = ("font.family", "font.sans-serif", "font.serif", "font.monospace")

_STYLE: dict[Any, Any] = {
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 100,
    "font.size": 8,
    "hatch.color": HATCH,
    "hatch.linewidth": 0.5,
    # TrueType, whole and editable: what journals ask for
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    # a model's "$" and "_" are text
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the house style, whatever the caller's settings, and leave those as they were.

    The caller's choice of font stays: someone whose prompts need other letters than matplotlib's
    own font has sets ``font.sans-serif`` as usual.
    """
    fonts = {name: matplotlib.rcParams[name] for name in _FONTS}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**fonts, **_STYLE})
        yield


@lru_cache(maxsize=8)
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """Code points that the first fonts of these names can draw."""
    letters: set[int] = set()
    for family in families:
        try:
            path = font_manager.findfont(family, fallback_to_default=False)
        except ValueError:
            continue
        letters.update(font_manager.get_font(path).get_charmap())
    return frozenset(letters)


def drawable(text: str) -> str:
    """One line of text in which every character shows.

    Line breaks become spaces; what is invisible or missing from the fonts is spelled out as
    ``⟦U+7EA2⟧``.
    """
    chosen = matplotlib.rcParams["font.family"]
    families: list[str] = []
    for family in [chosen] if isinstance(chosen, str) else chosen:
        generic: Any = f"font.{family}"
        families += matplotlib.rcParams[generic] if generic in _FONTS else [family]
    letters = _letters(tuple(families))
    return "".join(
        character if ord(character) in letters else f"⟦U+{ord(character):04X}⟧"
        for character in " ".join(visible(text).split())
    )


def fit(text: str, width: float, fonts: FontProperties) -> str:
    """Return the text, shortened with an ellipsis where it is wider than ``width`` inches."""

    def fits(candidate: str) -> bool:
        points, _, _ = _MEASURE.get_text_width_height_descent(candidate, fonts, ismath=False)
        # hinting makes letters on a screen up to a few percent wider
        return bool(points * 1.05 <= width * 72)

    if fits(text):
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle] + "…") else (low, middle - 1)
    return text[:low].rstrip() + "…"


def segment_name(segment: str, flow: InformationFlow) -> str:
    """Name a segment in a legend: of what is explained, only what stands earlier is looked at."""
    if segment != "answer":
        return segment
    return "earlier answer" if flow.words is None else "earlier words"


def header(figure: Figure, title: str, flow: InformationFlow, target: int) -> None:
    """Write what a figure shows, of which question and answer, into its uppermost inches."""
    about = "whole answer" if flow.words is None else flow.subject
    if target:
        of = "answer token" if flow.words is None else "token"
        about = f"{of} {target} “{flow.targets[target][:_CHARACTERS].strip()}”"
    bold, plain = FontProperties(size=9, weight="bold"), FontProperties(size=8)
    _line(figure, 0.13, f"{title[:1].upper()}{title[1:]} · {about}", bold, 4.9)
    _line(figure, 0.13, flow.model, plain, 1.9, right=True, colour=GREY)
    _line(figure, 0.32, f"Q: {flow.question}", plain, WIDTH - 0.2)
    explained = f"A: {flow.answer}" if flow.words is None else f"Explained: {flow.subject}"
    _line(figure, 0.46, explained, plain, WIDTH - 0.2)


def title_and_note(figure: Figure, title: str, note: str) -> None:
    """Write a figure's title, and a grey note below it, into its uppermost inches."""
    _line(figure, 0.16, title, FontProperties(size=9, weight="bold"), WIDTH - 0.2)
    _line(figure, 0.34, note, FontProperties(size=7), WIDTH - 0.2, colour=GREY)


def _line(
    figure: Figure,
    y: float,
    text: str,
    fonts: FontProperties,
    width: float,
    *,
    right: bool = False,
    colour: str = "black",
) -> None:
    """Write one line, ``y`` inches below the upper edge."""
    _, height = figure.get_size_inches()
    figure.text(
        1 - 0.1 / WIDTH if right else 0.1 / WIDTH,
        1 - y / height,
        fit(drawable(text[:_CHARACTERS]), width, fonts),
        fontproperties=fonts,
        color=colour,
        ha="right" if right else "left",
        va="center",
    )


def short(value: float) -> str:
    """Write a number in two significant digits, without zeros that say nothing: 0.31, 3.1e-4."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
