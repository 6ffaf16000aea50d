"""The app's own files, each under a name of its own: nothing is looked up on the disk by a path."""

from __future__ import annotations

from functools import cache
from importlib import resources

from vlmflow.reports.explain.sources import LIBRARIES, THEME, mounting_script, source, style

SCRIPTS = (
    "parts.js", "work.js", "pictures.js", "removing.js", "curve.js", "testing.js", "link.js",
    "ask.js",
)  # fmt: skip
"""Parts of the page's script, in the order in which they build on each other."""

JAVASCRIPT, CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"


def page() -> bytes:
    """Return the page."""
    return _read("index.html").encode()


@cache
def served_files() -> dict[str, tuple[bytes, str]]:
    """Return all other files by name: content and media type."""
    own = "\n".join(_read(name) for name in SCRIPTS)
    # The report's builders of elements come first; one closure, as in the report.
    shared = "\n".join(source("templates", name) for name in ("page.js", THEME))
    script = f'(() => {{\n"use strict";\n{shared}\n{own}\n}})();'
    files = {name: (source("vendor", name).encode(), JAVASCRIPT) for name in LIBRARIES}
    files["report.js"] = (mounting_script().encode(), JAVASCRIPT)
    files["app.js"] = (script.encode(), JAVASCRIPT)
    files["report.css"] = (style().encode(), CSS)
    files["app.css"] = (_read("app.css").encode(), CSS)
    return files


@cache
def _read(name: str) -> str:
    text = resources.files("vlmflow.app").joinpath("page", name).read_text("utf-8")
    return text.replace("\r\n", "\n")
