"""Docstrings name things by Sphinx roles, which Markdown does not know: show them as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class SphinxRoles(griffe.Extension):
    """Turns ``:meth:`explain``` into ``explain`` as code, in every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda role: f"``{role[1]}``", obj.docstring.value)
