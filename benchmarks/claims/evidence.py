"""What is measured of one model on one task, as arrays that the rules read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.removal.cliff import cliff_layer, losses
from vlmflow.statistics.bootstrap import sample_draws
from vlmflow.studies.cliff_layer.run import read_cliff_study
from vlmflow.studies.cliff_layer.study import CliffStudy
from vlmflow.studies.truncations.arms import Arm
from vlmflow.studies.truncations.results import StudyResult, read_study
from vlmflow.truncation.presets import preset, scaled
from vlmflow.truncation.truncation import Truncation

FloatArray = npt.NDArray[np.float64]

TASKS = ("scenes-reasoning", "scenes-reading", "scenes-existence", "scenes-caption")
"""In the order in which the paper finds their cliffs: 12, 18, 22 or 24, and about 30 of 32."""

PRESETS = ("fastv", "vtw", "pyramiddrop")

KEEPS = (0.5, 0.25, 0.1, 1)
"""What is kept where tokens are aggregated: shares, and a single token."""

DRAWS, SEED, CHANGED = 2000, 0, 0.05


@dataclass(frozen=True, eq=False)
class Evidence:
    """n test samples on a model of L layers."""

    model: str
    task: str
    score: float  # Of the untouched model
    concentration: FloatArray  # (n, L): share of a layer's saliency in its strongest tenth
    attention: FloatArray  # (n, L): share of the answer's attention that image tokens get
    changed: FloatArray  # (n, L): 1 where the answer changes with image tokens removed from there
    # Scores by name of the arm, of the same samples: (split, arm) to (n,); calibration's too
    scores: dict[tuple[str, str], FloatArray]
    arms: dict[str, Arm] = field(default_factory=dict)
    random: dict[str, str] = field(default_factory=dict)  # Of a ranked arm: tokens drawn instead
    agreement: dict[str, float] = field(default_factory=dict)  # Of arms, on the calibration split
    clusters: Sequence[str] | None = None  # What the samples of the removal curves share

    def arm(self, policy: Truncation) -> str | None:
        """Name the arm that does this to the image tokens; None where there is none."""
        for name, arm in self.arms.items():
            if arm.truncation == policy and not arm.is_down_sampled:
                return name
        return None

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.changed.shape[1])

    def cliff_draws(self) -> npt.NDArray[np.int64]:
        """Cliff layers of bootstrap draws of the samples, L for none: (draws,)."""
        drawn = []
        for picked in sample_draws(len(self.changed), self.clusters, DRAWS, SEED):
            layer = cliff_layer(self.changed[picked].mean(0), range(self.layers), CHANGED)
            drawn.append(self.layers if layer is None else layer)
        return np.array(drawn)


def truncations(layers: int) -> list[Truncation]:
    """List what a study answers under, for a model of so many layers."""
    listed = [Truncation(layer, 0) for layer in exit_layers(layers)]
    listed += [preset(name, layers) for name in PRESETS]
    listed += [*shallow(layers, "drop"), *shallow(layers, "merge")]
    return [policy for place, policy in enumerate(listed) if policy not in listed[:place]]


def shallow(layers: int, remainder: str) -> list[Truncation]:
    """List what keeps few tokens by attention at a shallow layer, and drops or merges the rest."""
    return [
        Truncation(layer, keep, rank_by="last_attention", remainder=remainder)
        for layer in shallow_layers(layers)
        for keep in KEEPS
    ]


def exit_layers(layers: int) -> list[int]:
    """Layers from which on all image tokens go: at most 8, evenly spaced, with the last."""
    return sorted({round(k) for k in np.linspace(1, layers - 1, min(8, layers - 1))})


def shallow_layers(layers: int) -> list[int]:
    """Layers up to a third of the depth at which tokens are aggregated: three of them."""
    return sorted({1, max(1, round(layers / 6)), max(1, layers // 3)})


def after_layer_three(layers: int) -> int:
    """The layer after the paper's layer 3 of 32, at the same depth."""
    return scaled(3, layers) + 1


def read_evidence(store: Path, model: str, task: str) -> Evidence | None:
    """Read what is stored of a model on a task; None where one of its studies is not finished."""
    try:
        curves = read_cliff_study(store / "cliff" / model / task)
        study = read_study(store / "study" / model / task)
    except InputError:
        return None
    return evidence_of(model, task, curves, study)


def evidence_of(model: str, task: str, curves: CliffStudy, study: StudyResult) -> Evidence:
    """Put two studies of one model on one task into arrays."""
    answered = [sample for sample in curves.measurements if sample.curve is not None]
    scores: dict[tuple[str, str], FloatArray] = {}
    for split, rows in study.result_frame().groupby("split"):
        table = rows.pivot(index="key", columns="arm", values="score").dropna()
        scores |= {(str(split), str(arm)): table[arm].to_numpy(np.float64) for arm in table}
    return Evidence(
        model=model,
        task=task,
        score=curves.score,
        concentration=np.stack([sample.signals["convergence"] for sample in answered]),
        attention=np.stack([sample.signals["attention share"] for sample in answered]),
        changed=np.stack([losses(curve, "answer") for curve in curves.curves]),
        scores=scores,
        arms={arm.name: arm for arm in study.arms},
        random={
            arm.name: control.name
            for arm in study.arms
            for control in study.controls(arm)
            if control.kind == "random"
        },
        agreement={
            summary.arm.name: summary.agreement.value
            for summary in study.summaries
            if summary.split == "calibration"
        },
        clusters=curves.clusters,
    )
