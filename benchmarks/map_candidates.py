"""Which maps rank regions best? Many candidates, judged by insertion and deletion.

    python benchmarks/map_candidates.py scenes-reasoning --samples 12
    python benchmarks/map_candidates.py scenes-reasoning --skip 12 --samples 20 --only "text 4"

It looks at the calibration split alone: what it singles out is judged on the test split, by
``vlmflow faithfulness`` (docs/faithfulness.md, "Forty maps"). Prints
the mean insertion minus deletion of every candidate (black, 8 steps) with its standard error, best
first. Layers are those of ``scenes-llava``, whose 12 layers have their third at layer 4.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import vlmflow
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import LAYER_INPUT, Signal
from vlmflow.studies.faithfulness.maps import TokenMap, explained, painted
from vlmflow.studies.faithfulness.measurements import Appearing
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.tasks.registry import as_task
from vlmflow.trust.passes import Passes
from vlmflow.trust.variants import curves_of

FloatArray = npt.NDArray[np.float64]
Maps = Mapping[str, FloatArray]

STEPS = 8


@dataclass(frozen=True)
class AnswerSaliency(Signal):
    """Saliency of the rows that predict the answer alone."""

    reads = "saliency"

    def of_layer(self, seen: LayerView) -> Tensor:
        """Add up the rows."""
        return seen.saliency[seen.is_answer].sum(0)


@dataclass(frozen=True)
class QuestionSaliency(Signal):
    """Saliency of the question's rows alone."""

    reads = "saliency"

    def of_layer(self, seen: LayerView) -> Tensor:
        """Add up the rows."""
        return seen.saliency[~seen.is_answer].sum(0)


@dataclass(frozen=True)
class LayerSensitivity(Signal):
    """Length of a token's state times length of its gradient, layer by layer."""

    reads = "features"

    @property
    def hook_point(self) -> str:
        """The layer's input."""
        return LAYER_INPUT

    def of_layer(self, seen: LayerView) -> Tensor:
        """Multiply the lengths."""
        lengths: Tensor = seen.features.norm(dim=1) * seen.gradient.norm(dim=1)
        return lengths


@dataclass(frozen=True)
class GradientLength(LayerSensitivity):
    """Length of a token's gradient, layer by layer."""

    def of_layer(self, seen: LayerView) -> Tensor:
        """Take the length."""
        length: Tensor = seen.gradient.norm(dim=1)
        return length


MEASURED: dict[str, str | Signal] = {
    "att": "attention",
    "text": "text_attention",
    "sal": "saliency",
    "sal answer": AnswerSaliency(),
    "sal question": QuestionSaliency(),
    "sens": LayerSensitivity(),
    "grad": GradientLength(),
    "flow map": "flow_map",
    "tam": "tam",
    "gradient x input": "gradient_input",
}


def _scaled(values: FloatArray) -> FloatArray:
    positive = np.clip(values, 0, None)
    return positive / positive.mean() if positive.any() else positive


def _ranks(values: FloatArray) -> FloatArray:
    return np.argsort(np.argsort(values)) / len(values)


def _smooth(values: FloatArray) -> FloatArray:
    """Over 3 x 3 tokens, weights halved with each step away."""
    side = round(len(values) ** 0.5)
    padded = np.pad(values.reshape(side, side), 1, mode="edge")
    steps = (-1, 0, 1)
    smoothed = sum(
        0.5 ** (abs(y) + abs(x)) * padded[1 + y : 1 + y + side, 1 + x : 1 + x + side]
        for y in steps
        for x in steps
    )
    return np.asarray(smoothed).reshape(-1)


def _layers(maps: Maps, name: str, first: int, last: int) -> FloatArray:
    """The scaled maps of several layers, added up."""
    return np.sum([_scaled(maps[name][layer]) for layer in range(first, last + 1)], axis=0)


def _sum(*values: FloatArray) -> FloatArray:
    return np.sum([_scaled(own) for own in values], axis=0)


def _product(*values: FloatArray) -> FloatArray:
    return np.prod([_scaled(own) for own in values], axis=0)


def candidates(maps: Maps) -> dict[str, FloatArray]:
    """Make every candidate of one sample: the maps of layer 4, of several layers, and mixtures."""
    att, text, sal = maps["att"], maps["text"], maps["sal"]
    early_att, early_text = _layers(maps, "att", 0, 4), _layers(maps, "text", 0, 4)
    sens = maps["sens"][:4].sum(0)
    return {
        "flow map": maps["flow map"],
        "tam": maps["tam"],
        "gradient x input": maps["gradient x input"],
        "att 3": att[3],
        "att 0-4": early_att,
        "text 3": text[3],
        "text 4": text[4],
        "text 5": text[5],
        "text 3-4": _layers(maps, "text", 3, 4),
        "text 2-4": _layers(maps, "text", 2, 4),
        "text 0-4": early_text,
        "sal 4": sal[4],
        "sal 4, smooth": _smooth(sal[4]),
        "sal 3-4": _layers(maps, "sal", 3, 4),
        "sal 2-5": _layers(maps, "sal", 2, 5),
        "sal 0-4": _layers(maps, "sal", 0, 4),
        "sal 0-4, not scaled": sal[:5].sum(0),
        "sal 4 of the question": maps["sal question"][4],
        "sal 4 of the answer": maps["sal answer"][4],
        "sens 0-3": sens,
        "sens 0-3, smooth": _smooth(sens),
        "sens 4": maps["sens"][4],
        "grad 0-3": maps["grad"][:4].sum(0),
        "grad 4": maps["grad"][4],
        "text 4 + sal 4": _sum(text[4], sal[4]),
        "text 4 + sal 4, ranks": _ranks(text[4]) + _ranks(sal[4]),
        "text 4 x sal 4": _product(text[4], sal[4]),
        "text 4 + sal 4 + sens": _sum(text[4], sal[4], sens),
        "text 4 + sal 4 + att 0-4": _sum(text[4], sal[4], early_att),
        "text 4 + att 4": _sum(text[4], att[4]),
        "text 4 + att 0-4": _sum(text[4], early_att),
        "text 4 x att 0-4": _product(text[4], early_att),
        "text 4 + sens": _sum(text[4], sens),
        "text 4 x sens": _product(text[4], sens),
        "text 0-4 x sens": _product(early_text, sens),
        "text 4 + att 0-4 + sens": _sum(text[4], early_att, sens),
        "text 4 x text 4 x att 0-4 x sens": _product(text[4], text[4], early_att, sens),
        "sal 4 + att 0-4": _sum(sal[4], early_att),
        "sal 4 x att 0-4": _product(sal[4], early_att),
        "sal 0-4 + att 0-4": _layers(maps, "sal", 0, 4) + early_att,
        "sal 4 + sens, ranks": _ranks(sal[4]) + _ranks(sens),
        "att 0-4 x sens": _product(early_att, sens),
    }


def judge(
    task_name: str, samples: range, wanted: Callable[[str], bool], dtype: str
) -> dict[str, list[float]]:
    """Insertion minus deletion of the wanted candidates on some calibration samples."""
    vlm = vlmflow.load("scenes-llava", dtype=dtype)
    task = as_task(task_name)
    named = ExplainOptions(signals=list(MEASURED.values())).named
    settings = FaithfulnessSettings(replacements=("black",), steps=STEPS)
    passes = {"black": Passes("auto", vlm.device)}
    differences: dict[str, list[float]] = {}
    drawn = itertools.islice(task.samples("calibration", samples.stop), samples.start, None)
    console = Console(stderr=True)
    for sample in track(
        drawn, task_name, total=len(samples), console=console, disable=not console.is_terminal
    ):
        unanswered = vlm.prepare(sample.pictures, sample.question)
        answer = vlm.generate_ids(unanswered, max_new_tokens=task.max_new_tokens)
        prompt = vlm.with_answer(unanswered, answer)
        flow = explained(vlm, prompt, sample.question, named, per_token=False, low_memory=False)
        appearing = Appearing(vlm, prompt, sample.question, settings, 0, passes)
        maps = {name: _maps(flow, own) for name, own in zip(MEASURED, named, strict=True)}
        for name, values in candidates(maps).items():
            if not wanted(name):
                continue
            chosen = TokenMap(values, painted(flow.layout, values))
            curves = curves_of("probability", appearing.means(chosen, "black", STEPS))
            assert curves is not None
            differences.setdefault(name, []).append(curves.difference)
    return differences


def _maps(flow: Any, name: str) -> FloatArray:
    """(L, P), or (P,) of a signal with one map."""
    maps = np.nan_to_num(flow.maps[name][:, 0].astype(np.float64))
    return maps if flow.map_info(name).summed is None else maps[0]


def main() -> None:
    """Command line of ``python benchmarks/map_candidates.py``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("task")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--skip", type=int, default=0, help="first calibration samples left out")
    parser.add_argument("--only", nargs="+", help="candidates, by their names; default: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    only = given.only
    differences = judge(
        given.task,
        range(given.skip, given.skip + given.samples),
        lambda name: only is None or name in only,
        given.dtype,
    )
    table = Table(title=f"{given.task}, {given.samples} calibration samples from {given.skip} on")
    for column in ("candidate", "insertion minus deletion", "standard error"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name, values in sorted(differences.items(), key=lambda item: -np.mean(item[1])):
        error = np.std(values, ddof=1) / len(values) ** 0.5
        table.add_row(name, f"{np.mean(values):+.3f}", f"{error:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
