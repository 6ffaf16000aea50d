"""Command line of ``python -m benchmarks.claims``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import vlmflow
from benchmarks.claims.evidence import TASKS, read_evidence, truncations
from benchmarks.claims.page import write
from vlmflow.bundled.shelf import bundled_models

DOCS = Path(__file__).parents[2] / "docs"


def measure(arguments: argparse.Namespace) -> None:
    """Run both studies of every model on every task; what is stored is not measured again."""
    console = Console(stderr=True)
    for name in arguments.models:
        vlm = vlmflow.load(name)
        for task in arguments.tasks:
            console.print(f"{name}, {task}: removal curves", highlight=False)
            out = arguments.out
            counts = {"samples": arguments.samples, "calibration": arguments.calibration}
            vlmflow.cliff_study(vlm, task, out=out / "cliff" / name / task, **counts)
            console.print(f"{name}, {task}: truncations", highlight=False)
            policies = truncations(vlm.num_layers)
            vlmflow.study(vlm, task, policies, out=out / "study" / name / task, timed=0, **counts)


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("command", choices=("measure", "page"))
    parser.add_argument("--out", type=Path, required=True, help="directory of the stored results")
    parser.add_argument("--models", nargs="+", default=bundled_models())
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--samples", type=int, default=200, help="of the test split")
    parser.add_argument("--calibration", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments)
        return
    stored = {
        name: [read for task in TASKS if (read := read_evidence(arguments.out, name, task))]
        for name in arguments.models
    }
    measured = {name: tasks for name, tasks in stored.items() if tasks}
    if not measured:
        parser.error(f"{arguments.out} holds no finished results; run measure first")
    write(measured, DOCS)


if __name__ == "__main__":
    main()
