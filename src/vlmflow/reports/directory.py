"""Everything about a study in one directory: page, figures and tables, all or none."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TypeAlias

from vlmflow.files import as_path, staged, write_files
from vlmflow.reports.comparison.latex import latex_table
from vlmflow.reports.write import figures, report
from vlmflow.studies.budget.result import TokenBudget
from vlmflow.studies.certification.certificate import Certificate
from vlmflow.studies.cliff_layer.study import CliffStudy
from vlmflow.studies.comparison.comparison import Comparison
from vlmflow.studies.faithfulness.study import FaithfulnessStudy
from vlmflow.studies.imported.study import ImportedStudy
from vlmflow.studies.truncations.results import StudyResult

Study: TypeAlias = (
    Certificate
    | CliffStudy
    | Comparison
    | FaithfulnessStudy
    | ImportedStudy
    | StudyResult
    | TokenBudget
)


def write_directory(result: Study, directory: str | os.PathLike[str]) -> Path:
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


def _tables(result: Study) -> tuple[str, dict[str, bytes]]:
    """Return the name of the page, and the tables beside it."""
    if isinstance(result, Certificate):
        body = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        return "certificate.html", {
            "certificate.json": body.encode(),
            "rivals.csv": result.rival_frame().to_csv(index=False).encode(),
            "signals.csv": result.skill_frame().to_csv(index=False).encode(),
            "path.csv": result.path_frame().to_csv(index=False).encode(),
            "samples.csv": result.run_frame().to_csv(index=False).encode(),
        }
    if isinstance(result, TokenBudget):
        body = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        return "budget.html", {
            "budget.json": body.encode(),
            "budgets.csv": result.frame().to_csv(index=False).encode(),
        }
    if isinstance(result, CliffStudy):
        body = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        return "cliff.html", {
            "cliff.json": body.encode(),
            "layers.csv": result.layer_frame().to_csv(index=False).encode(),
            "samples.csv": result.sample_frame().to_csv(index=False).encode(),
        }
    if isinstance(result, Comparison):
        return "comparison.html", {
            "comparison.csv": result.frame().to_csv(index=False).encode(),
            "comparison.tex": latex_table(result).encode(),
            "results.csv": result.study.result_frame().to_csv(index=False).encode(),
        }
    if isinstance(result, FaithfulnessStudy):
        body = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        frames = {
            "maps.csv": result.map_frame(),
            "pairs.csv": result.pair_frame(),
            "pictures.csv": result.picture_frame(),
            "curves.csv": result.curve_frame(),
            "agreement.csv": result.agreement_frame(),
            "drawn_weights.csv": result.drawn_frame(),
            "layers_tried.csv": result.choice_frame(),
            "combinations_tried.csv": result.combination_frame(),
            "costs.csv": result.cost_frame(),
            "samples.csv": result.sample_frame(),
            "places.csv": result.place_frame(),
        }
        return "faithfulness.html", {
            "faithfulness.json": body.encode(),
            **{
                file: frame.to_csv(index=False).encode()
                for file, frame in frames.items()
                if len(frame)
            },
        }
    if isinstance(result, ImportedStudy):
        return "imported.html", {
            "runs.csv": result.frame().to_csv(index=False).encode(),
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
