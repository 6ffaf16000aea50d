"""Fragments of HTML with which results show themselves in a notebook."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import jinja2


def fragment(package: str, **values: Any) -> str:
    """Fill in the template ``notebook.html.j2`` of a package, such as ``"vlmflow.result"``.

    All texts are escaped. A value that the template names and that is missing is an error.
    """
    return _template(package).render(**values)


@cache
def _template(package: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = (resources.files(package) / "notebook.html.j2").read_text("utf-8")
    return environment.from_string(text)
