"""Everything about a table that was run again in one directory: page and tables, all or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.files import write_files
from vlmflow.reports.reproduction.page import reproduction_page
from vlmflow.reproductions.run import RECORD

if TYPE_CHECKING:
    from vlmflow.reproductions.reproduction import Reproduction

PAGE = "reproduction.html"


def write_reproduction(reproduction: Reproduction, directory: Path) -> Path:
    """Write page, CSV and JSON of a reproduction, and return the path of the page.

    Raises
    ------
    InputError
        If the directory cannot be written; nothing half-written is left.
    """
    body = json.dumps(reproduction.to_json(), indent=2, allow_nan=False) + "\n"
    contents = {
        PAGE: reproduction_page(reproduction).encode(),
        "reproduction.csv": reproduction.frame().to_csv(index=False).encode(),
        RECORD: body.encode(),
    }
    return write_files(directory, contents) / PAGE
