"""Which maps can be trusted on the bundled model? The tables of docs/faithfulness.md.

    python benchmarks/faithfulness.py --out faithfulness

Runs ``vlmflow.faithfulness`` on one task, or goes on with it, and prints one table in Markdown per
replacement: insertion, deletion and their difference, the chance level tested and corrected, the
strict pointing game where the task has boxes, and the cost.
"""

from __future__ import annotations

import argparse
import sys

import vlmflow
from vlmflow.studies.faithfulness.sentences import chance_words, main_table, with_interval


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--task", default="scenes-pointing")
    parser.add_argument("--out", required=True, help="directory of the study")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=20)
    parser.add_argument("--signals", nargs="+", help="all where left out")
    arguments = parser.parse_args()
    study = vlmflow.faithfulness(
        vlmflow.load(arguments.model),
        arguments.task,
        arguments.signals or "all",
        out=arguments.out,
        samples=arguments.samples,
        calibration=arguments.calibration,
        replacements=("black", "blur", "mean", "tokens"),
        progress=lambda done, total: print(f"{done} of {total}", file=sys.stderr, flush=True),
    )
    frame, places = study.map_frame(), study.place_frame()
    hits = dict(zip(places["map"], places["hits"], strict=True)) if len(places) else {}
    costs = study.cost_frame().set_index("map")["times a forward pass"] if study.costs else {}
    for replacement in study.settings.shown:
        print(f"\n**{replacement}**, {len(study.measured)} test samples of {study.task}\n")
        print("| map | insertion | deletion | difference, 95 % | than random | hits | cost |")
        print("|---|---|---|---|---|---|---|")
        for row in main_table(frame, replacement):
            name = row["map"]
            cells = [
                study.label(name),
                f"{row['insertion']:.3f}",
                f"{row['deletion']:.3f}",
                with_interval(row, "difference"),
                chance_words(row),
                f"{100 * hits[name]:.0f} %" if name in hits else "",
                f"{costs[name]:.1f}" if name in costs else "",
            ]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
