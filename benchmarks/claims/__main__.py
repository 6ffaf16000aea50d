"""Command line of ``python -m benchmarks.claims``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import vlmflow
from benchmarks.claims.evidence import (
    SEED,
    TASKS,
    Evidence,
    candidates,
    evidence_of,
    load_evidence,
    save_evidence,
)
from benchmarks.claims.page import write
from benchmarks.claims.rules import chosen
from vlmflow.bundled.shelf import bundled_models
from vlmflow.lvlm.model import LVLM
from vlmflow.studies.truncations.results import StudyResult
from vlmflow.truncation.truncation import Truncation

DOCS = Path(__file__).parents[2] / "docs"
EVIDENCE = Path(__file__).parent / "measured"
"""What the page is made from: one file per model and task."""


def measure(vlm: LVLM, task: str, out: Path, samples: int, calibration: int) -> Evidence:
    """Run the studies of one model on one task; what is stored there is not measured again.

    First all candidates on the calibration split, then what it chose on the test split. Controls
    are among the candidates. Each study has one sample or a few of the other split, which no rule
    reads, because none can do without.
    """
    curves = vlmflow.cliff_study(vlm, task, out=out / "curves", samples=samples, calibration=8)

    def study(part: str, policies: list[Truncation], **counts: int) -> StudyResult:
        return vlmflow.study(
            vlm, task, policies, out=out / part, timed=0, seed=SEED, controls=(), **counts
        )

    policies = candidates(vlm.num_layers)
    picked = study("calibration", policies, samples=1, calibration=calibration)
    policies = chosen(evidence_of(vlm.name, task, curves, picked))
    tested = study("test", policies, samples=samples, calibration=1)
    return evidence_of(vlm.name, task, curves, picked, tested)


def read_all(models: Iterable[str]) -> dict[str, list[Evidence]]:
    """Read what was measured: of every model that there is something of, its tasks."""
    stored = {
        name: [read for task in TASKS if (read := load_evidence(EVIDENCE, name, task))]
        for name in models
    }
    return {name: tasks for name, tasks in stored.items() if tasks}


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("command", choices=("measure", "page"))
    parser.add_argument("--out", type=Path, help="directory of the studies, which measure needs")
    parser.add_argument("--models", nargs="+", default=bundled_models())
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--samples", type=int, default=200, help="of the test split")
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument("--dtype", help="number format; the weights' own where left out")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        if arguments.out is None:
            parser.error("measure needs --out, a directory for its studies")
        for name in arguments.models:
            vlm = vlmflow.load(name, dtype=arguments.dtype)
            for task in arguments.tasks:
                print(f"{name}, {task}", file=sys.stderr)
                counts = arguments.samples, arguments.calibration
                save_evidence(
                    measure(vlm, task, arguments.out / vlm.name / task, *counts), EVIDENCE
                )
        return
    measured = read_all(arguments.models)
    if not measured:
        parser.error(f"{EVIDENCE} holds nothing of {', '.join(arguments.models)}; measure first")
    write(measured, DOCS)


if __name__ == "__main__":
    main()
