"""Pages without scripts: their templates, and the style that they share."""

from __future__ import annotations

import base64
import io
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from vlmflow.reports.figures.style import figure_style
from vlmflow.reports.palette import GREY, theme_css

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def plain_page(name: str) -> jinja2.Template:
    """Return a template that escapes whatever it is given and forgives no missing value."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # Figures are white in every theme, hence their captions' grey.
    environment.globals |= {"theme": Markup(theme_css()), "grey": GREY}
    return environment.get_template(name)


def embedded(figure: Figure) -> Markup:
    """Return a figure as the base64 of a PNG, for a ``data:`` address."""
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format="png", dpi=200)
    return Markup(base64.b64encode(buffer.getvalue()).decode())


def _source(name: str) -> str:
    return (resources.files("vlmflow.reports") / "templates" / name).read_text("utf-8")
