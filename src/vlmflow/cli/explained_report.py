"""Pages of answers that were explained before, one alone or two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmflow.errors import InputError

NUMBERS, PAGE = "flow.json", "report.html"


def is_explained(directory: Path) -> bool:
    """Whether a directory holds an explained answer."""
    return (directory / NUMBERS).is_file()


def write_explained(directories: Sequence[Path], out: Path | None) -> Path:
    """Write the page of one explained answer, or of two side by side; returns the file.

    Raises
    ------
    InputError
        If a directory holds none, or there are more than two, or no place to write two to.
    """
    from vlmflow.reports.write import report
    from vlmflow.result.information_flow import InformationFlow

    for directory in directories:
        if not is_explained(directory):
            raise InputError(
                f"directory {str(directory)!r} holds no explained answer, and only these are set "
                "side by side; 'vlmflow explain' makes one"
            )
    if len(directories) > 2:
        raise InputError(
            f"{len(directories)} directories were given, but a report sets two explained answers "
            "side by side; give one or two"
        )
    if len(directories) == 2 and out is None:
        raise InputError("two answers have no directory of their own; name one with --out")
    flows = [InformationFlow.load(directory) for directory in directories]
    return report(flows, (out or directories[0]) / PAGE)
