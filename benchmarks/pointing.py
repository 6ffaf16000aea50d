"""Do the maps point at the object a question asks about? A strict pointing game.

    python benchmarks/pointing.py

Each question asks about exactly one object whose box is known. A map hits if the centre of its
single highest image token lies inside that box; a tie, an undefined or an empty map is a miss. The
layer of each signal (for ``flow_map``, the number of first layers that are summed) is chosen on the
calibration split and reported on the test split. Controls: a random map (seeded), and the token
nearest to the middle of the picture. Intervals are Wilson's, 95 %; differences to the random map
are paired and bootstrapped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vlmflow
from vlmflow.scenes import POINTING, Sample, samples
from vlmflow.statistics.intervals import wilson_interval

SIGNALS = ("attention", "saliency", "llava_cam", "llava_cam_code", "rollout", "relevancy")
WHOLE = ("gradient_input", "integrated_gradients(steps=8)", "tam")
"""With one map of the whole model. Region removal is left out: its regions are ties of tokens."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    map: str
    layer: str
    calibration: float
    hits: int
    count: int
    share: float
    low: float
    high: float
    over_random_low: float
    over_random_high: float


def strict_hit(scores: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> bool:
    """Whether the one highest token is inside; ties and maps without a positive value miss."""
    top = scores.max()
    return bool(top > 0 and (scores == top).sum() == 1 and inside[scores.argmax()])


def measure(vlm: vlmflow.LVLM, questions: list[Sample], seed: int) -> dict[str, npt.NDArray[Any]]:
    """Hits of every map: (samples, layers) per signal, (samples, 1) per control."""
    rng = np.random.default_rng(seed)
    hits: dict[str, list[list[bool]]] = {
        name: [] for name in (*SIGNALS, *WHOLE, "flow_map", "random", "centre", "right answer")
    }
    console = Console(stderr=True)
    for sample in track(questions, "explaining", console=console, disable=not console.is_terminal):
        signals = (*SIGNALS, *WHOLE)
        flow = vlm.explain(sample.picture, sample.question, signals=signals, per_token=False)
        (grid,) = flow.layout.grids
        boxes = grid.boxes.reshape(-1, 4)
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        assert sample.task_question.box is not None
        x0, y0, x1, y1 = sample.task_question.box
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        for name, maps in zip(signals, flow.maps.values(), strict=True):
            hits[name].append([strict_hit(row, inside) for row in maps[:, 0]])
        summed = np.cumsum(flow.maps["saliency"][:, 0], axis=0)
        hits["flow_map"].append([strict_hit(row, inside) for row in summed])
        hits["random"].append([bool(inside[rng.integers(inside.size)])])
        middle = (x - sample.scene.width / 2) ** 2 + (y - sample.scene.height / 2) ** 2
        hits["centre"].append([bool(inside[middle.argmin()])])
        hits["right answer"].append([sample.accepts(flow.answer)])
    return {name: np.array(values) for name, values in hits.items()}


def paired_interval(difference: npt.NDArray[Any], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of a mean of paired differences (10,000 draws)."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(difference.size, size=(10_000, difference.size))
    low, high = np.quantile(difference[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def table(
    calibration: dict[str, npt.NDArray[Any]], test: dict[str, npt.NDArray[Any]], seed: int
) -> list[Row]:
    """Choose every layer on the calibration split, report on the test split."""
    rows = []
    for name in (*SIGNALS, *WHOLE, "flow_map", "centre", "random"):
        layer = int(calibration[name].mean(0).argmax())
        hit = test[name][:, layer]
        low, high = wilson_interval(int(hit.sum()), hit.size)
        gain = paired_interval(hit.astype(float) - test["random"][:, 0], seed)
        where = "" if name in (*WHOLE, "centre", "random") else str(layer)
        if name == "flow_map":
            where = f"sum of 0..{layer}"
        rows.append(
            Row(
                map=name,
                layer=where,
                calibration=float(calibration[name][:, layer].mean()),
                hits=int(hit.sum()),
                count=hit.size,
                share=float(hit.mean()),
                low=low,
                high=high,
                over_random_low=gain[0],
                over_random_high=gain[1],
            )
        )
    last = test["flow_map"].shape[1] - 1
    hit = test["flow_map"][:, last]
    low, high = wilson_interval(int(hit.sum()), hit.size)
    gain = paired_interval(hit.astype(float) - test["random"][:, 0], seed)
    share = float(calibration["flow_map"][:, last].mean())
    rows.append(
        Row(
            *("flow_map", "all layers", share, int(hit.sum()), hit.size, float(hit.mean())),
            *(low, high, *gain),
        )
    )
    return sorted(rows, key=lambda row: -row.share)


def main() -> None:
    """Run both splits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--count", type=int, default=200, help="questions per split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    vlm = vlmflow.load(arguments.model)
    hits = {
        split: measure(vlm, list(samples(POINTING, split, arguments.count)), arguments.seed)
        for split in ("calibration", "test")
    }
    rows = table(hits["calibration"], hits["test"], arguments.seed)
    right = float(hits["test"]["right answer"].mean())
    by_layer = {
        name: hits["test"][name].mean(0).round(3).tolist() for name in (*SIGNALS, "flow_map")
    }
    if arguments.json:
        print(
            json.dumps(
                {
                    "model": arguments.model,
                    "seed": arguments.seed,
                    "right_answers": right,
                    "rows": [asdict(row) for row in rows],
                    "test_hits_by_layer": by_layer,
                },
                indent=2,
            )
        )
        return
    drawn = Table(title=f"Strict hits, test split, n={rows[0].count}, seed {arguments.seed}")
    for column in ("map", "layer", "hits", "95 %", "above random, 95 %", "calibration"):
        drawn.add_column(column, justify="left" if column in ("map", "layer") else "right")
    for row in rows:
        drawn.add_row(
            row.map,
            row.layer,
            f"{row.share:.1%}",
            f"{row.low:.1%} .. {row.high:.1%}",
            f"{row.over_random_low:+.1%} .. {row.over_random_high:+.1%}",
            f"{row.calibration:.1%}",
        )
    console = Console(width=110)
    console.print(drawn)
    console.print(f"Answers that are right on the test split: {right:.1%}")
    console.print("Hits per layer on the test split (nothing is chosen from these):")
    for name, shares in by_layer.items():
        console.print(f"  {name:15}", " ".join(f"{share:4.0%}" for share in shares))


if __name__ == "__main__":
    main()
