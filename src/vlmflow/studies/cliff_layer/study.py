"""The cliff layer of a task on one model: measured on its samples, and put into tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.removal.answer_curve import AnswerCurve
from vlmflow.removal.cliff import Cliff, cliff, losses
from vlmflow.removal.curve import RemovalCurve
from vlmflow.removal.knockout import Knockout
from vlmflow.statistics.bootstrap import mean_interval
from vlmflow.statistics.intervals import mean_estimate
from vlmflow.studies.cliff_layer.knockout import (
    ONWARDS,
    SINGLE,
    KnockoutFigures,
    knockout_figures,
)
from vlmflow.studies.cliff_layer.measurements import SIGNALS, Failure, SampleMeasurement
from vlmflow.studies.cliff_layer.prediction import Prediction, predictions, true_cliffs
from vlmflow.studies.cliff_layer.sentences import NAME_SHOWN, cliff_words, headline
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.tasks.base import Task
from vlmflow.version import __version__

FloatArray = npt.NDArray[np.float64]


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
    measurements : tuple of SampleMeasurement
        The test samples, in order.
    kl, changed : Cliff
        Cliff layer by mean KL and by the share of changed answers.
    predictions : tuple of Prediction
        What cheap signals predict.
    settings : dict
        Everything else that was asked for.
    failures : tuple of Failure
        Calibration and test samples that could not be measured.
    """

    task: str
    metric: str
    model: dict[str, Any]
    measurements: tuple[SampleMeasurement, ...]
    kl: Cliff
    changed: Cliff
    predictions: tuple[Prediction, ...]
    settings: dict[str, Any]
    failures: tuple[Failure, ...] = ()

    @property
    def curves(self) -> list[RemovalCurve]:
        """Removal curves of the samples that have an answer."""
        return [sample.curve for sample in self.measurements if sample.curve is not None]

    @property
    def knockouts(self) -> list[Knockout]:
        """Attention knockouts of the same samples; empty where the study is without."""
        if not self.settings.get("knockout"):
            return []
        return [own.knockout for own in self.measurements if own.knockout is not None]

    @property
    def clusters(self) -> list[str]:
        """What those samples share; empty: nothing."""
        return [sample.sample.cluster for sample in self.measurements if sample.curve is not None]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the curves."""
        return self.curves[0].layers

    @property
    def score(self) -> float:
        """Mean score of the untouched model, over the samples that did not fail."""
        scores = [sample.score for sample in self.measurements if sample.failure is None]
        return float(np.mean(scores))

    def layer_frame(self) -> pd.DataFrame:
        """One row per layer: losses and signals, each with its 95 % interval.

        ``changed`` is the share of answers that differ, with Wilson's interval, ``kl`` the mean KL
        in nats, with a bootstrap interval as the signals; ``redundancy`` 1 - mean KL / mean KL at
        layer 0. Where samples share a picture, all intervals are bootstraps over pictures. With a
        knockout, ``knockout kl`` and ``knockout changed`` are the same losses where the answer's
        rows see no image token from the layer on, ``knockout at kl`` and ``knockout at changed``
        at this layer alone.
        """
        columns: dict[str, Any] = {"layer": list(self.layers), **self._losses("", self.curves)}
        lost = columns["kl"]
        columns["redundancy"] = 1 - lost / lost[0] if lost[0] > 0 else np.full(len(lost), np.nan)
        for signal in SIGNALS:
            values = np.stack(
                [sample.signals[signal] for sample in self.measurements if sample.signals]
            )
            columns |= self._with_interval(signal, values)
        if self.knockouts:
            columns |= self._losses(ONWARDS, [own.onwards for own in self.knockouts])
            columns |= self._losses(SINGLE, [own.single for own in self.knockouts])
        return pd.DataFrame(columns)

    def knockout_figures(self) -> KnockoutFigures | None:
        """Say what the knockouts come to beside removal; None for a study without."""
        if not self.knockouts:
            return None
        draws, seed = self.settings["draws"], self.settings["seed"]
        return knockout_figures(self.curves, self.knockouts, self.clusters, draws=draws, seed=seed)

    def sample_frame(self) -> pd.DataFrame:
        """One row per sample: question, answer, score, and its cliff layer (L: none)."""
        cliffs = iter(true_cliffs(self.measurements, self.kl.tolerance).tolist())
        return pd.DataFrame(
            {
                "key": measurement.sample.key,
                "group": measurement.sample.group,
                "question": measurement.sample.question,
                "reference": " | ".join(measurement.sample.references),
                "answer": None if measurement.failure else measurement.answer,
                "score": measurement.score,
                "cliff": next(cliffs) if measurement.curve is not None else None,
                "failure": measurement.failure,
            }
            for measurement in self.measurements
        )

    def _repr_html_(self) -> str:
        """Show the finding and one row per layer in a notebook."""
        rows = []
        for row in self.layer_frame().to_dict("records"):
            low, high = 100 * row["changed low"], 100 * row["changed high"]
            rows.append(
                {
                    "layer": row["layer"],
                    "is_cliff": row["layer"] == self.changed.layer,
                    "changed": f"{100 * row['changed']:.1f} %",
                    "changed_ends": f"{low:.1f} to {high:.1f}",
                    "kl": f"{row['kl']:.3f}",
                    "kl_ends": f"{row['kl low']:.3f} to {row['kl high']:.3f}",
                }
            )
        return fragment(
            "vlmflow.studies.cliff_layer",
            headline=headline(self.task, self.changed, len(self.layers)),
            model=shown(str(self.model["name"]), NAME_SHOWN),
            metric=shown(self.metric, NAME_SHOWN),
            score=f"{100 * self.score:.1f} %",
            samples=len(self.curves),
            failed=len(self.failures),
            changed=cliff_words(self.changed),
            kl=cliff_words(self.kl),
            knockout=str(self.knockout_figures() or ""),
            rows=rows,
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single samples, for JSON."""
        frame, cut_off = self.layer_frame(), self.knockout_figures()
        return {
            "task": self.task,
            "metric": self.metric,
            "score": self.score,
            "samples": len(self.measurements),
            "without_answer": sum(
                sample.curve is None and sample.failure is None for sample in self.measurements
            ),
            "failures": [asdict(failure) for failure in self.failures],
            "cliff_by_kl": asdict(self.kl),
            "cliff_by_changed_answers": asdict(self.changed),
            "knockout": None if cut_off is None else cut_off.to_json(),
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "layers": frame.astype(object).where(frame.notna(), None).to_dict("records"),
            "model": self.model,
            "settings": self.settings,
            "vlmflow": __version__,
        }

    def _losses(self, prefix: str, curves: Sequence[AnswerCurve]) -> dict[str, Any]:
        """Give the mean KL and the share of changed answers by layer, with their intervals."""
        columns: dict[str, Any] = self._with_interval(
            f"{prefix}kl", np.stack([losses(curve, "kl") for curve in curves])
        )
        differs = np.stack([losses(curve, "answer") for curve in curves])
        draws, seed = self.settings["draws"], self.settings["seed"]
        shares = [
            mean_estimate(share, self.clusters, draws=draws, seed=seed) for share in differs.T
        ]
        name = f"{prefix}changed"
        columns[name] = differs.mean(0)
        columns[f"{name} low"] = [share.low for share in shares]
        columns[f"{name} high"] = [share.high for share in shares]
        return columns

    def _with_interval(self, name: str, values: FloatArray) -> dict[str, FloatArray]:
        draws, seed = self.settings["draws"], self.settings["seed"]
        low, high = mean_interval(values, self.clusters, draws, seed)
        return {name: values.mean(0), f"{name} low": low, f"{name} high": high}


def cliff_study_of(
    task: Task,
    model: dict[str, Any],
    settings: CliffSettings,
    calibration: Sequence[SampleMeasurement],
    test: Sequence[SampleMeasurement],
) -> CliffStudy:
    """Put measured samples into tables, of a model with this summary of its configuration.

    Raises
    ------
    InputError
        If no sample of either split could be measured, or the model answered none.
    """
    failures = []
    for split, measurements in (("calibration", calibration), ("test", test)):
        failed = [
            Failure(split, measurement.sample.key, measurement.failure)
            for measurement in measurements
            if measurement.failure is not None
        ]
        if len(failed) == len(measurements):
            raise InputError(
                f"no {split} sample of {task.name} could be measured; the first, "
                f"{failed[0].key}: {failed[0].reason}"
            )
        failures += failed
    fitted, tested = _scored(task, calibration), _scored(task, test)
    answered = [sample for sample in tested if sample.curve is not None]
    curves = [sample.curve for sample in answered if sample.curve is not None]
    clusters = [sample.sample.cluster for sample in answered]
    draws, seed = settings.draws, settings.seed
    predicted = predictions(fitted, tested, settings.tolerance, draws=draws, seed=seed)
    return CliffStudy(
        task=task.name,
        metric=task.metric,
        model=model,
        measurements=tuple(tested),
        kl=cliff(curves, settings.tolerance, clusters=clusters, draws=draws, seed=seed),
        changed=cliff(
            curves, settings.changed, loss="answer", clusters=clusters, draws=draws, seed=seed
        ),
        predictions=tuple(predicted),
        settings=asdict(settings),
        failures=tuple(failures),
    )


def _scored(task: Task, measurements: Sequence[SampleMeasurement]) -> list[SampleMeasurement]:
    """Score all answers of a split together, which some metrics need."""
    measured = [measurement for measurement in measurements if measurement.failure is None]
    scores = iter(
        task.scores(
            [measurement.sample for measurement in measured],
            [measurement.answer for measurement in measured],
        )
    )
    return [
        measurement if measurement.failure else replace(measurement, score=next(scores))
        for measurement in measurements
    ]
