"""The faithfulness of maps over a task: what was measured, and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.notebook import fragment
from vlmflow.result.map_info import MapInfo
from vlmflow.studies.cliff_layer.measurements import Failure
from vlmflow.studies.faithfulness import sentences, tables
from vlmflow.studies.faithfulness.choice import LayerChoice, Tried, layers_chosen
from vlmflow.studies.faithfulness.combinations import (
    Combination,
    best_of,
    combinations_tried,
    combined_lines,
)
from vlmflow.studies.faithfulness.measurements import Faithfulness, SampleFaithfulness
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.studies.faithfulness.store import StoredRecord, unpack
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.version import __version__


@dataclass(frozen=True, eq=False)
class FaithfulnessStudy:
    """How far each map can be trusted on a task, beside controls that know nothing of the model.

    Parameters
    ----------
    task, metric : str
        The task and what its score is called.
    model : dict
        Summary of the model's configuration.
    about : dict of str to MapInfo
        What each signal's map is.
    choices : tuple of LayerChoice
        Every layer that was tried, and which one was chosen on the calibration split.
    samples : tuple of SampleFaithfulness
        The test samples, in order.
    drawn : dict of str to list
        Per stage of drawn weights and sample the rank correlation of every signal's map with that
        of the trained model (None: one of the two is constant); None for a sample that failed.
    costs : tuple of dict
        Per timed sample what every signal takes, as
        :func:`vlmflow.studies.faithfulness.cost.costs` gives it.
    in_sample : tuple of str
        Signals whose maps were searched for by removing image tokens: their figures under
        ``"tokens"`` are in-sample.
    settings : FaithfulnessSettings
        Everything else that was asked for.
    failures : tuple of Failure
        Calibration and test samples that could not be measured.
    combinations : tuple of Combination
        Single maps and combinations that were tried on the calibration split, the best first; empty
        where none were asked for.
    combined : tuple of 2 str, optional
        Names of the maps of the best combination and of the best single signal there.
    """

    task: str
    metric: str
    model: dict[str, Any]
    about: Mapping[str, MapInfo]
    choices: tuple[LayerChoice, ...]
    samples: tuple[SampleFaithfulness, ...]
    drawn: Mapping[str, Sequence[Mapping[str, float | None] | None]]
    costs: tuple[Mapping[str, Mapping[str, float]], ...]
    in_sample: tuple[str, ...]
    settings: FaithfulnessSettings
    failures: tuple[Failure, ...] = ()
    combinations: tuple[Combination, ...] = ()
    combined: tuple[str, str] | None = None

    @property
    def measured(self) -> list[Faithfulness]:
        """What was measured of the samples that have an answer."""
        return [sample.measured for sample in self.samples if sample.measured is not None]

    @property
    def clusters(self) -> list[str]:
        """What those samples share; empty: nothing."""
        return [own.sample.cluster for own in self.samples if own.measured is not None]

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of all maps: the signals', then the controls."""
        return self.measured[0].maps

    @property
    def layers(self) -> dict[str, int | None]:
        """The chosen layer of every signal; None for one map of all layers."""
        return {choice.signal: choice.layer for choice in self.choices if choice.chosen}

    @property
    def score(self) -> float:
        """Mean score of the model's answers, over the samples that did not fail."""
        return float(np.mean([own.score for own in self.samples if own.failure is None]))

    def label(self, name: str) -> str:
        """Say what a map is called: ``"saliency, layer 6"``."""
        if name not in self.about:
            return f"{name} (control)"
        layer = self.layers[name]
        return self.about[name].label + ("" if layer is None else f", layer {layer}")

    @property
    def facts(self) -> sentences.Facts:
        """What sentences about the study need to know."""
        return sentences.Facts(
            task=self.task,
            metric=self.metric,
            score=self.score,
            settings=self.settings,
            labels={name: self.label(name) for name in self.maps},
            has_chosen=any(choice.difference is not None for choice in self.choices),
            answered=len(self.measured),
            silent=self.silent,
            failures=self.failures,
            in_sample=self.in_sample,
        )

    @property
    def silent(self) -> int:
        """Test samples that the model gave no answer to."""
        return sum(own.measured is None and own.failure is None for own in self.samples)

    def map_frame(self) -> pd.DataFrame:
        """One row per replacement, score and map; see :func:`tables.map_frame`."""
        return tables.map_frame(self.measured, self.clusters, self.layers, self._draws)

    def pair_frame(self) -> pd.DataFrame:
        """One row per replacement and pair of maps; see :func:`tables.pair_frame`."""
        return tables.pair_frame(self.measured, self.clusters, self._draws)

    def picture_frame(self) -> pd.DataFrame:
        """One row per replacement: what the answer is worth with the picture and without."""
        return tables.picture_frame(self.measured, self.clusters, self._draws)

    def curve_frame(self) -> pd.DataFrame:
        """One row per replacement, map and step: the mean curves."""
        return tables.curve_frame(self.measured)

    def place_frame(self) -> pd.DataFrame:
        """One row per map: where it lies; empty where the task has no boxes."""
        return tables.place_frame(self.measured, self.clusters, self._draws)

    def agreement_frame(self) -> pd.DataFrame:
        """One row per pair of maps: mean rank correlation over image tokens."""
        return tables.agreement_frame(self.measured, self.clusters, self._draws)

    def drawn_frame(self) -> pd.DataFrame:
        """One row per signal and stage of drawn weights: mean rank correlation."""
        return tables.drawn_frame(self.drawn, list(self.about), self.clusters, self._draws)

    def cost_frame(self) -> pd.DataFrame:
        """One row per signal: passes, seconds, and seconds over those of one forward pass."""
        return tables.cost_frame(self.costs)

    def choice_frame(self) -> pd.DataFrame:
        """One row per signal and layer tried on the calibration split."""
        frame = pd.DataFrame([asdict(choice) for choice in self.choices])
        return frame.astype({"layer": "Int64"})

    def combination_frame(self) -> pd.DataFrame:
        """One row per single map and combination tried on the calibration split."""
        return pd.DataFrame([asdict(tried) for tried in self.combinations])

    def combined_lines(self) -> list[str]:
        """Say what the best combination is worth beside the best single map; none: not asked."""
        if self.combined is None:
            return []
        return combined_lines(self.combinations, self.combined, self.pair_frame())

    def sample_frame(self) -> pd.DataFrame:
        """One row per sample: question, answer, score, and every map's difference."""
        return tables.sample_frame(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Return everything but single samples and costs, for JSON."""
        frames = {
            "maps": self.map_frame(),
            "pairs": self.pair_frame(),
            "pictures": self.picture_frame(),
            "places": self.place_frame(),
            "agreement": self.agreement_frame(),
            "drawn_weights": self.drawn_frame(),
            "layers_tried": self.choice_frame(),
            "combinations_tried": self.combination_frame(),
        }
        return {
            "task": self.task,
            "metric": self.metric,
            "score": self.score,
            "samples": len(self.samples),
            "without_answer": self.silent,
            "failures": [asdict(failure) for failure in self.failures],
            "largest_batch": max(self._batches, default=None),
            "smallest_batch": min(self._batches, default=None),
            "signals": {name: info.to_json() for name, info in self.about.items()},
            "in_sample": list(self.in_sample),
            **{
                name: frame.astype(object).where(frame.notna(), None).to_dict("records")
                for name, frame in frames.items()
            },
            "model": self.model,
            "settings": asdict(self.settings),
            "vlmflow": __version__,
        }

    def _repr_html_(self) -> str:
        """Show the finding and one row per map and replacement in a notebook."""
        frame = self.map_frame()
        return fragment(
            "vlmflow.studies.faithfulness",
            headline=sentences.headline(self.facts, frame),
            model=shown(str(self.model["name"]), sentences.NAME_SHOWN),
            second=sentences.second_line(self.facts),
            rows=sentences.main_rows(self.facts, frame),
        )

    @property
    def _batches(self) -> list[int]:
        """Pictures, or subsets of tokens, to a forward pass: where that was recorded."""
        return [own.batch for own in self.measured if own.batch is not None]

    @property
    def _draws(self) -> tuple[int, int]:
        return self.settings.draws, self.settings.seed


def faithfulness_study_of(
    task: Task,
    record: Mapping[str, Any],
    samples: Mapping[str, TaskSample],
    rows: Mapping[str, StoredRecord],
) -> FaithfulnessStudy:
    """Put measurements into a study; ``record`` says which belong to it.

    Raises
    ------
    InputError
        If no test sample has an answer that was measured.
    """
    settings = _settings(record["settings"])
    failures = [
        Failure(split, samples[sample].key, reason)
        for split in ("calibration", "test")
        for sample, row in record[split]
        if (reason := rows[row].failure) is not None
    ]
    calibration = [
        Tried(samples[sample].cluster, json.loads(plain))
        for sample, row in record["calibration"]
        if (plain := rows[row].plain) is not None
    ]
    tested = []
    for sample, row in record["test"]:
        own = rows[row]
        measured = None
        if own.plain is not None and own.arrays is not None:
            measured = unpack(own.plain, own.arrays)
        tested.append(SampleFaithfulness(samples[sample], own.answer or "", measured, own.failure))
    combined, tried = record.get("combined"), []
    if combined is not None:
        searched = [
            Tried(samples[sample].cluster, json.loads(plain))
            for sample, row in combined["searched"]
            if (plain := rows[row].plain) is not None
        ]
        tried = combinations_tried(
            combined["parts"], combined["titles"], record["tried"], calibration, searched, settings
        )
    if not any(own.measured is not None for own in tested):
        raise InputError(f"no test sample of {task.name} has an answer that was measured")
    return FaithfulnessStudy(
        task=task.name,
        metric=task.metric,
        model=record["model"],
        about={name: MapInfo.from_json(info) for name, info in record["about"].items()},
        choices=tuple(layers_chosen(record["tried"], calibration, settings)),
        samples=_scored(task, tested),
        drawn={
            stage: [None if (plain := rows[row].plain) is None else json.loads(plain)
                    for _, row in own]
            for stage, own in record["drawn"].items()
        },
        costs=tuple(
            json.loads(plain) for _, row in record["timed"] if (plain := rows[row].plain)
        ),
        in_sample=tuple(record["in_sample"]),
        settings=settings,
        failures=tuple(failures),
        combinations=tuple(tried),
        combined=None if combined is None else (combined["name"], _best_single(combined, tried)),
    )  # fmt: skip


def _best_single(combined: Mapping[str, Any], tried: Sequence[Combination]) -> str:
    best, parts = best_of(tried, single=True), combined["parts"]
    return next(str(name) for name, (part, _) in parts.items() if part == best)


def _settings(plain: Mapping[str, Any]) -> FaithfulnessSettings:
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
    }
    return FaithfulnessSettings(**given)


def _scored(task: Task, samples: Sequence[SampleFaithfulness]) -> tuple[SampleFaithfulness, ...]:
    """Score all answers together, which some metrics need."""
    answered = [own for own in samples if own.failure is None]
    scores = iter(task.scores([own.sample for own in answered], [own.answer for own in answered]))
    return tuple(
        own if own.failure is not None else replace(own, score=float(next(scores)))
        for own in samples
    )
