"""The cliff layer of a task on one model: measured on its samples, and put into tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import vlmflow
from vlmflow.errors import InputError
from vlmflow.removal.cliff import Cliff, cliff, losses
from vlmflow.removal.curve import RemovalCurve
from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.statistics.intervals import wilson_interval
from vlmflow.studies.cliff_layer.measurements import SIGNALS, Observed, observe
from vlmflow.studies.cliff_layer.prediction import Prediction, predictions, true_cliffs
from vlmflow.tasks.base import Task

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

FloatArray = npt.NDArray[np.float64]

TOLERANCE, CHANGED = 0.1, 0.05
"""Defaults: mean KL in nats that removal may cost, and the share of answers it may change."""


@dataclass(frozen=True, eq=False)
class CliffStudy:
    """What a task's image tokens are worth from each layer on.

    ``n`` test samples with an answer, ``L`` layers.

    Parameters
    ----------
    task, metric : str
        The task and what its score is called.
    model : dict
        Summary of the model's configuration.
    observed : tuple of Observed
        The test samples, in order.
    kl, changed : Cliff
        Cliff layer by mean KL and by the share of changed answers.
    predictions : tuple of Prediction
        What cheap signals foretell.
    settings : dict
        Everything else that was asked for.
    """

    task: str
    metric: str
    model: dict[str, Any]
    observed: tuple[Observed, ...]
    kl: Cliff
    changed: Cliff
    predictions: tuple[Prediction, ...]
    settings: dict[str, Any]

    @property
    def curves(self) -> list[RemovalCurve]:
        """Removal curves of the samples that have an answer."""
        return [one.curve for one in self.observed if one.curve is not None]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the curves."""
        return self.curves[0].layers

    @property
    def score(self) -> float:
        """Mean score of the untouched model."""
        return float(np.mean([one.score for one in self.observed]))

    def layer_frame(self) -> pd.DataFrame:
        """One row per layer: losses and signals, each with its 95 % interval.

        ``changed`` is the share of answers that differ, with Wilson's interval; ``kl`` the mean KL
        in nats, with a bootstrap interval as the signals; ``redundancy`` 1 - mean KL / mean KL at
        layer 0.
        """
        kl = np.stack([losses(curve, "kl") for curve in self.curves])
        changed = np.sum([losses(curve, "answer") for curve in self.curves], axis=0).astype(int)
        columns: dict[str, Any] = {"layer": list(self.layers)}
        columns |= self._with_interval("kl", kl)
        columns["changed"] = changed / len(kl)
        bounds = np.array([wilson_interval(int(one), len(kl)) for one in changed])
        columns["changed low"], columns["changed high"] = bounds.T
        lost = kl.mean(0)
        columns["redundancy"] = 1 - lost / lost[0] if lost[0] > 0 else np.full(len(lost), np.nan)
        for signal in SIGNALS:
            values = np.stack([one.signals[signal] for one in self.observed if one.signals])
            columns |= self._with_interval(signal, values)
        return pd.DataFrame(columns)

    def sample_frame(self) -> pd.DataFrame:
        """One row per sample: question, answer, score, and its cliff layer (L: none)."""
        cliffs = iter(true_cliffs(self.observed, self.kl.tolerance).tolist())
        return pd.DataFrame(
            {
                "key": one.sample.key,
                "group": one.sample.group,
                "question": one.sample.question,
                "reference": " | ".join(one.sample.references),
                "answer": one.answer,
                "score": one.score,
                "cliff": next(cliffs) if one.curve is not None else None,
            }
            for one in self.observed
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single samples, for JSON."""
        frame = self.layer_frame()
        return {
            "task": self.task,
            "metric": self.metric,
            "score": self.score,
            "samples": len(self.observed),
            "without_answer": sum(one.curve is None for one in self.observed),
            "cliff_by_kl": asdict(self.kl),
            "cliff_by_changed_answers": asdict(self.changed),
            "predictions": [asdict(one) for one in self.predictions],
            "layers": frame.astype(object).where(frame.notna(), None).to_dict("records"),
            "model": self.model,
            "settings": self.settings,
            "vlmflow": vlmflow.__version__,
        }

    def _with_interval(self, name: str, values: FloatArray) -> dict[str, FloatArray]:
        low, high = mean_interval(values, self.settings["draws"], self.settings["seed"])
        return {name: values.mean(0), f"{name} low": low, f"{name} high": high}


def cliff_study(
    vlm: LVLM,
    task: Task,
    *,
    count: int = 200,
    calibration: int = 100,
    tolerance: float = TOLERANCE,
    changed: float = CHANGED,
    batch: int = 8,
    draws: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CliffStudy:
    """Measure a task's cliff layer on its test split.

    Parameters
    ----------
    vlm : LVLM
        The model.
    task : Task
        The data.
    count, calibration : int
        Samples of the test split, and of the calibration split, on which thresholds of the cheap
        signals are chosen.
    tolerance, changed : float
        Mean KL in nats, and share of changed answers, that removal may cost.
    batch : int
        Samples at once.
    draws, seed : int
        Of the bootstraps.
    progress : callable, optional
        Called with ``(samples done, samples in all)``.

    Raises
    ------
    InputError
        For impossible settings, or if the model gives no answer to any sample.
    """
    for name, value in (("count", count), ("calibration", calibration), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name}={value}, but it takes at least 1 sample")

    def tell(before: int, done: int) -> None:
        if progress is not None:
            progress(before + done, calibration + count)

    known = _observed(vlm, task, "calibration", calibration, batch, lambda done: tell(0, done))
    asked = _observed(vlm, task, "test", count, batch, lambda done: tell(len(known), done))
    found = predictions(known, asked, tolerance, draws=draws, seed=seed)
    curves = [one.curve for one in asked if one.curve is not None]
    return CliffStudy(
        task=task.name,
        metric=task.metric,
        model=vlm.config_summary(),
        observed=tuple(asked),
        kl=cliff(curves, tolerance, loss="kl", draws=draws, seed=seed),
        changed=cliff(curves, changed, loss="answer", draws=draws, seed=seed),
        predictions=tuple(found),
        settings={
            "count": count,
            "calibration": calibration,
            "tolerance": tolerance,
            "changed": changed,
            "batch": batch,
            "draws": draws,
            "seed": seed,
        },
    )


def _observed(
    vlm: LVLM, task: Task, split: str, count: int, batch: int, progress: Callable[[int], None]
) -> Sequence[Observed]:
    found = list(observe(vlm, task, split, count, batch=batch, progress=progress))
    scores = task.scores([one.sample for one in found], [one.answer for one in found])
    return [replace(one, score=score) for one, score in zip(found, scores, strict=True)]
