"""Pages with little or no script: their templates, and the style that they share."""

from __future__ import annotations

from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

from vlmflow.escape_invisible import shown
from vlmflow.reports.palette import theme_css

SETTING_SHOWN = 2000


@cache
def plain_page(name: str) -> jinja2.Template:
    """Return a template that escapes whatever it is given and forgives no missing value."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"theme": Markup(theme_css())}
    environment.filters["setting"] = _setting
    return environment.get_template(name)


def _setting(value: object) -> str:
    """Write a setting of a study: names of models and tasks among them are a stranger's text."""
    if isinstance(value, tuple | list):
        return ", ".join(map(_setting, value))
    return "none" if value is None else shown(str(value), SETTING_SHOWN)


def script(name: str) -> Markup:
    """Return one of the scripts of pages, to be put in as it is."""
    return Markup(_source(name))


def _source(name: str) -> str:
    return (resources.files("vlmflow.reports") / "templates" / name).read_text("utf-8")
