"""Figures as the contents of files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: tuple[str, ...] = ("png", "pdf")
"""300 dpi, and text and lines as vectors with their fonts inside."""

_DPI = 300
_LEVEL = 2
"""Of PNG's compression: most of the time of writing a figure goes into higher levels."""


def figure_files(
    figures: Mapping[str, Figure], formats: Sequence[str] = FORMATS
) -> dict[str, bytes]:
    """Return every figure in every format, by the name of its file."""
    from vlmflow.reports.figures.style import figure_style

    contents: dict[str, bytes] = {}
    # Inside the style: fonts are embedded when a figure is written, not when it is drawn.
    with figure_style():
        for name, figure in figures.items():
            for format_name in formats:
                buffer = io.BytesIO()
                # Without a date the same result gives the same file.
                options: dict[str, Any] = {"metadata": {"CreationDate": None}}
                if format_name == "png":
                    options = {"pil_kwargs": {"compress_level": _LEVEL}}
                figure.savefig(buffer, format=format_name, dpi=_DPI, **options)
                contents[f"{name}.{format_name}"] = buffer.getvalue()
    return contents
