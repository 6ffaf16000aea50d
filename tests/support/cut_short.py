"""What keeps pages, examples and notebooks short that run as they stand."""

from __future__ import annotations

from typing import Any

from tests.support.number_format import quick_by_default
from vlmflow.reports.figures import all_figures, figure_files


def cut_short(monkeypatch: Any) -> None:
    """Test maps in two steps, write no PDFs, and open models in the quick number format."""
    monkeypatch.setattr("vlmflow.trust.of_explanation.EXPLAINED_STEPS", 2)
    png_alone(monkeypatch)
    quick_by_default(monkeypatch)


def png_alone(monkeypatch: Any) -> None:
    """Let figures be written without their PDFs, which take longest; tests/reports has both."""
    written = figure_files.figure_files

    def write(figures: Any, _formats: Any = ()) -> dict[str, bytes]:
        return written(figures, ("png",))

    for module in (figure_files, all_figures):
        monkeypatch.setattr(module, "figure_files", write)
