"""What is measured of every sample of a task: its answer, its curves and three signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlmflow.flow.measure import Measurement, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.saliency import Saliency
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.removal.curve import RemovalCurve, removal_curves
from vlmflow.removal.knockout import Knockout, knockouts
from vlmflow.result.convergence import top_mass
from vlmflow.studies.batching.ahead import Prepared
from vlmflow.studies.samples import failure_reason
from vlmflow.tasks.base import TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

FloatArray = npt.NDArray[np.float64]

SIGNALS = ("attention share", "saliency flow", "convergence")


@dataclass(frozen=True, eq=False)
class SampleMeasurement:
    """One sample: its answer, its removal curve and its signals."""

    sample: TaskSample  # Its question and pictures
    # The model's greedy answer; empty where it ended at once or the sample failed, and then nothing
    # else is measured
    answer: str
    score: float = float("nan")  # The task's score of that answer; NaN where the sample failed
    curve: RemovalCurve | None = None  # With keep 0
    # :data:`SIGNALS` per layer: the share of attention that the answer's rows give to image tokens,
    # the share of all saliency from image tokens to text that flows in this layer, and the share of
    # the layer's that the strongest tenth of the image tokens hold
    signals: Mapping[str, FloatArray] = field(default_factory=dict)
    failure: str | None = None  # Why the sample failed
    knockout: Knockout | None = None  # Where it was wanted


@dataclass(frozen=True)
class Failure:
    """A sample that could not be measured, and is left out of everything else."""

    # Split and key of the sample
    split: str
    key: str
    reason: str


def measure_samples(
    vlm: LVLM, prepared: Sequence[Prepared], max_new_tokens: int, *, knockout: bool = False
) -> list[SampleMeasurement]:
    """Answer and measure samples in one batch, with an attention knockout where it is wanted.

    Raises
    ------
    InputError, ModelError
        Whatever is wrong with a sample.
    """
    prompts = [item.prompt for item in prepared if item.prompt is not None]
    answers = vlm.generate_batch(prompts, max_new_tokens=max_new_tokens)
    with_answers = {
        number: vlm.with_answer(prompt, ids)
        for number, (prompt, ids) in enumerate(zip(prompts, answers, strict=True))
        if ids
    }
    measured = [SampleMeasurement(item.sample, "") for item in prepared]
    if with_answers:
        batch = list(with_answers.values())
        # First, because some models are refused.
        cut_off = knockouts(vlm, batch) if knockout else [None] * len(batch)
        curves = removal_curves(vlm, batch)
        inputs, layouts = collate(batch, pad_id(vlm.processor.tokenizer))
        options = ExplainOptions(signals=[Saliency()], per_token=False)
        flows = measure(vlm.model, vlm.decoder_layers, inputs, layouts, options)
        for number, curve, own, flow in zip(with_answers, curves, cut_off, flows, strict=True):
            measured[number] = SampleMeasurement(
                prepared[number].sample,
                with_answers[number].answer or "",
                curve=curve,
                signals=_signals(flow),
                knockout=own,
            )
    return measured


def failed_measurement(sample: TaskSample, error: Exception) -> SampleMeasurement:
    """Say why a sample could not be measured."""
    return SampleMeasurement(sample, "", failure=failure_reason(error))


def _signals(measured: Measurement) -> dict[str, FloatArray]:
    image = SEGMENTS.index("image")
    maps = measured.maps[Saliency.known_as()][:, 0]
    flow = measured.saliency_sum[:, 0, :, image].sum(1, dtype=np.float64)
    return {
        "attention share": measured.attention_share[:, 0, image].astype(np.float64),
        "saliency flow": flow / max(flow.sum(), np.finfo(np.float64).tiny),
        "convergence": np.array([top_mass(values) or 0.0 for values in maps]),
    }
