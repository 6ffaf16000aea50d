"""What the page of one answer is put together from: its scripts, style and templates."""

from __future__ import annotations

from functools import cache
from importlib import resources

import jinja2

from vlmflow.reports.palette import theme_css

LIBRARIES = ("d3.min.js", "plot.umd.min.js")
SCRIPTS = (
    "page.js", "words.js", "numbers.js", "choice.js", "controls.js", "picture.js", "strip.js",
    "verdict.js", "outline.js", "chart.js", "curves.js", "arcs.js", "table.js",
    "trust.js", "reading.js", "region.js", "sequence.js", "readers.js", "play.js", "compare.js",
    "truncated.js", "start.js",
)  # fmt: skip
THEME = "theme.js"
"""Of a page as a whole, not of the result it shows."""


@cache
def source(folder: str, name: str) -> str:
    """Return a file of the page, with line ends as browsers hash them."""
    text = resources.files("vlmflow.reports").joinpath(folder, name).read_text("utf-8")
    return text.replace("\r\n", "\n")


def style() -> str:
    """Return all style rules of the page."""
    return theme_css() + source("templates", "page.css")


def opening_script() -> str:
    """Return the script of a page that holds one result, which it opens at once."""
    theme = source("templates", THEME)
    return f"(() => {{\n{_parts()}\n{theme}\nofferTheme();\nopenReport();\n}})();"


def mounting_script() -> str:
    """Return the script of a page that shows one result after another: ``mountReport()``.

    Each call draws the result whose elements are in the document then, from their very data. What
    it returns closes it again, and lets the page around it follow and change what is chosen.
    """
    offered = (
        "closed: closeReport, opened: openReport(), head, choice, choose, follow, layerChart, "
        "layRemoved"
    )
    return f"window.mountReport = () => {{\n{_parts()}\nreturn {{ {offered} }};\n}};"


def _parts() -> str:
    """Return the files in one scope: they share their names with each other and nothing else."""
    return '"use strict";\n' + "\n".join(source("templates", name) for name in SCRIPTS)


@cache
def templates() -> jinja2.Environment:
    """Return the templates of the page, with everything put into them escaped."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: source("templates", name)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
