"""The colours of pages and figures, once: themes, segments, series, and the scale of maps.

The scale's home is :mod:`vlmflow.result.map_colours`, because results show themselves too. The hues
are Okabe and Ito's (2008), which readers without full colour vision tell apart, darkened or
lightened until lines have a contrast of 3 to the paper and texts one of 4.5 (WCAG 2.2). Marks and
dashes say the same as colours wherever a colour carries a meaning.
"""

from __future__ import annotations

from vlmflow.result.map_colours import MAP_SCALE as MAP_SCALE

LIGHT = {
    "paper": "#ffffff", "ground": "#f6f5f2", "ink": "#1b1d21", "soft": "#4c5159",
    "quiet": "#5f646c", "rule": "#e3e1dc", "mark": "#fff3d6",
    "image": "#d55e00", "user": "#0072b2", "system": "#00805c", "answer": "#a8577f",
    "accent": "#0072b2", "on-accent": "#ffffff", "good": "#00664b", "bad": "#a63c00",
    "mustard": "#8a6d00", "violet": "#6f4fa8",
}  # fmt: skip
"""Colours of the light theme, of printed pages and of figures, by what they are for."""

DARK = {
    "paper": "#16181c", "ground": "#1f2227", "ink": "#eceae5", "soft": "#c0bfba",
    "quiet": "#a5a6a4", "rule": "#34383f", "mark": "#3a3420",
    "image": "#f08a3c", "user": "#56b4e9", "system": "#2fc49a", "answer": "#e39cc2",
    "accent": "#56b4e9", "on-accent": "#101215", "good": "#4fd0a8", "bad": "#ff9d61",
    "mustard": "#d9bb55", "violet": "#b9a0ef",
}  # fmt: skip
"""Colours of the dark theme, with the same names."""

PRINT = LIGHT | {"ink": "#000000", "soft": "#333333", "quiet": "#555555", "rule": "#cccccc"}
"""Colours of a printed page: darker texts."""

SERIES = (
    LIGHT["image"], LIGHT["user"], LIGHT["system"], LIGHT["answer"], LIGHT["mustard"],
    LIGHT["violet"],
)  # fmt: skip
"""Colours of curves that are not segments, in the order in which they are given out."""

GREY = LIGHT["quiet"]
"""Of what stands beside the results: notes, tolerances, the untouched model."""

GRID = "#d9d9d9"
"""Of the lines behind curves."""

HATCH = "#8a8a8a"
"""Of what was not measured or not seen."""


def theme_css() -> str:
    """Return the style rules that define the colours of a page as variables, such as ``--ink``.

    The reader's system chooses the theme, unless the page's root has ``data-theme``.
    """
    return f"""\
:root {{ color-scheme: light; {_variables(LIGHT)} }}
:root[data-theme="dark"] {{ color-scheme: dark; {_variables(DARK)} }}
@media (prefers-color-scheme: dark) {{
  :root:not([data-theme="light"]) {{ color-scheme: dark; {_variables(DARK)} }}
}}
@media print {{
  :root, :root:not([data-theme="light"]), :root[data-theme="dark"] {{ color-scheme: light; {_variables(PRINT)} }}
}}
"""  # noqa: E501


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
