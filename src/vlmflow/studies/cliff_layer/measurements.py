"""What is measured of every sample of a task: its answer, its removal curve and three signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlmflow.flow.measure import Measurement, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.saliency import Saliency
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.removal.curve import RemovalCurve, removal_curves
from vlmflow.result.convergence import top_mass
from vlmflow.tasks.base import Task, TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

FloatArray = npt.NDArray[np.float64]

SIGNALS = ("attention share", "saliency flow", "convergence")


@dataclass(frozen=True, eq=False)
class SampleMeasurement:
    """One sample: its answer, its removal curve and its signals."""

    sample: TaskSample  # Its question and pictures
    # The model's greedy answer; empty where it ended at once, and then nothing else is measured
    answer: str
    score: float  # The task's score of that answer; NaN where answers cannot be scored one by one
    curve: RemovalCurve | None  # With keep 0
    # :data:`SIGNALS` per layer: the share of attention that the answer's rows give to image tokens,
    # the share of all saliency from image tokens to text that flows in this layer, and the share of
    # the layer's that the strongest tenth of the image tokens hold
    signals: dict[str, FloatArray]


def measure_samples(
    vlm: LVLM,
    task: Task,
    split: str,
    count: int,
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Iterator[SampleMeasurement]:
    """Answer and measure the first samples of a split, ``batch`` at once.

    ``progress`` is called with the number of samples done after each batch.
    """
    samples = task.samples(split, count)
    done = 0
    while chunk := list(islice(samples, batch)):
        yield from _measure_chunk(vlm, task, chunk)
        done += len(chunk)
        if progress is not None:
            progress(done)


def _measure_chunk(
    vlm: LVLM, task: Task, chunk: Sequence[TaskSample]
) -> Iterator[SampleMeasurement]:
    prompts = [vlm.prepare(sample.pictures, sample.question) for sample in chunk]
    answers = vlm.generate_batch(prompts, max_new_tokens=task.max_new_tokens)
    answered = [number for number, ids in enumerate(answers) if ids]
    with_answers = [vlm.with_answer(prompts[number], answers[number]) for number in answered]
    curves, flows = [], []
    if with_answers:
        curves = removal_curves(vlm, with_answers)
        inputs, layouts = collate(with_answers, pad_id(vlm.processor.tokenizer))
        options = ExplainOptions(signals=[Saliency()], per_token=False)
        flows = measure(vlm.model, vlm.decoder_layers, inputs, layouts, options)
    for number, sample in enumerate(chunk):
        if number not in answered:
            yield SampleMeasurement(sample, "", _score(task, sample, ""), None, {})
            continue
        place = answered.index(number)
        text = with_answers[place].answer or ""
        score = _score(task, sample, text)
        yield SampleMeasurement(sample, text, score, curves[place], _signals(flows[place]))


def _score(task: Task, sample: TaskSample, answer: str) -> float:
    return task.score(sample, answer) if task.by_itself else float("nan")


def _signals(measured: Measurement) -> dict[str, FloatArray]:
    image = SEGMENTS.index("image")
    maps = measured.maps[Saliency.known_as()][:, 0]
    flow = measured.saliency_sum[:, 0, :, image].sum(1, dtype=np.float64)
    return {
        "attention share": measured.attention_share[:, 0, image].astype(np.float64),
        "saliency flow": flow / max(flow.sum(), np.finfo(np.float64).tiny),
        "convergence": np.array([top_mass(values) or 0.0 for values in maps]),
    }
