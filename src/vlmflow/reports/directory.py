"""Everything about a study in one directory: page, figures and tables, all or none."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from vlmflow.files import as_path, staged, write_files
from vlmflow.reports.write import figures, report
from vlmflow.studies.cliff_layer.study import CliffStudy
from vlmflow.studies.truncations.results import StudyResult


def write_directory(result: CliffStudy | StudyResult, directory: str | os.PathLike[str]) -> Path:
    """Write the page of a study, its figures, and its numbers as CSV, JSON or Parquet.

    The directory is created where missing; files of these names are replaced, others are kept.
    Returns the path of the page.

    Raises
    ------
    InputError
        If the directory cannot be written; nothing half-written is left.
    """
    folder = as_path(directory)
    name, tables = _tables(result)
    with staged(folder, tuple(tables)) as staging:
        report(result, staging / name)
        figures(result, staging)
        write_files(staging, tables)
    return folder / name


def _tables(result: CliffStudy | StudyResult) -> tuple[str, dict[str, bytes]]:
    """Return the name of the page, and the tables beside it."""
    if isinstance(result, CliffStudy):
        body = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        return "cliff.html", {
            "cliff.json": body.encode(),
            "layers.csv": result.layer_frame().to_csv(index=False).encode(),
            "samples.csv": result.sample_frame().to_csv(index=False).encode(),
        }
    results = result.result_frame()
    parquet = io.BytesIO()
    results.to_parquet(parquet, index=False)
    return "study.html", {
        "arms.csv": result.arm_frame().to_csv(index=False).encode(),
        "results.csv": results.to_csv(index=False).encode(),
        "results.parquet": parquet.getvalue(),
    }
