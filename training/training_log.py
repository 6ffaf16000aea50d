"""The log of a training run: rows of ``training_log.csv``, also on the terminal."""

from __future__ import annotations

import csv
import time
from collections.abc import Collection, Sequence
from pathlib import Path


class TrainingLog:
    """Appends rows; those after the last checkpoint are dropped, as they will be logged again."""

    def __init__(
        self, path: Path, fields: Sequence[str], start: int, finished_stages: Collection[str] = ()
    ) -> None:
        self.path, self.fields = path, fields
        rows: list[dict[str, str]] = []
        if start and path.exists():
            with path.open(newline="") as file:
                rows = [
                    row
                    for row in csv.DictReader(file)
                    if row.get("stage") in finished_stages or int(row["step"]) <= start
                ]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)
        self.started = time.monotonic() - (float(rows[-1]["seconds"]) if rows else 0)

    def row(self, **values: float | str) -> None:
        """Append one row; columns that are not given stay empty."""
        values["seconds"] = round(time.monotonic() - self.started)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(values)
        print("  ".join(f"{key} {value}" for key, value in values.items()), flush=True)
