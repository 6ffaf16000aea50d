"""How wide a figure is and how its panels stand: for files, for a page, and for a phone."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.reports.figures.style import WIDTH


@dataclass(frozen=True)
class FigureLayout:
    """Where a figure will be seen.

    Parameters
    ----------
    width : float
        Inches.
    columns : int
        Panels side by side.
    titled : bool
        Whether it says what it shows; on a page the text beside it does.
    """

    width: float
    columns: int
    titled: bool

    @property
    def is_narrow(self) -> bool:
        """Whether panels stand below each other."""
        return self.columns == 1


FILE = FigureLayout(WIDTH, 2, titled=True)
PAGE = FigureLayout(WIDTH, 2, titled=False)
PHONE = FigureLayout(3.6, 1, titled=False)
