"""What is measured of one model on one task, as arrays that the rules read."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlmflow.files import write_files
from vlmflow.removal.cliff import cliff_layer, losses
from vlmflow.statistics.bootstrap import sample_draws
from vlmflow.studies.cliff_layer.study import CliffStudy
from vlmflow.studies.truncations.results import StudyResult
from vlmflow.truncation.presets import scaled
from vlmflow.truncation.rankings.random import Random
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
    # Scores by name of the arm: (split, arm) to (samples of the split,). Calibration has all
    # candidates, test what was chosen there.
    scores: dict[tuple[str, str], FloatArray]
    policies: dict[str, Truncation] = field(default_factory=dict)  # What arms do, by name
    agreement: dict[str, float] = field(default_factory=dict)  # Of arms, on the calibration split
    clusters: Sequence[str] | None = None  # What the samples of the removal curves share
    # Number format of the weights; what is stored without one was measured in theirs
    dtype: str = "bfloat16"

    def arm(self, policy: Truncation) -> str | None:
        """Name the arm that does this to the image tokens; None where there is none."""
        return next((name for name, own in self.policies.items() if own == policy), None)

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


def candidates(layers: int) -> list[Truncation]:
    """List what the calibration split chooses among, for a model of so many layers."""
    dropped = shallow(layers, "drop")
    listed = [Truncation(layer, 0) for layer in exit_layers(layers)]
    return [*listed, *dropped, *map(drawn, dropped), *shallow(layers, "merge")]


def drawn(policy: Truncation) -> Truncation:
    """Keep as many tokens on the same schedule, but random ones."""
    return replace(policy, rank_by=Random(SEED))


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
    """Layers at which tokens are ranked and aggregated: a sixth and a third of the depth."""
    return sorted({max(1, round(layers / 6)), max(1, layers // 3)})


def after_layer_three(layers: int) -> int:
    """The layer after the paper's layer 3 of 32, at the same depth."""
    return scaled(3, layers) + 1


def evidence_of(
    model: str,
    task: str,
    curves: CliffStudy,
    chosen: StudyResult,
    tested: StudyResult | None = None,
) -> Evidence:
    """Put the studies of one model on one task into arrays.

    Parameters
    ----------
    model, task
        Their names.
    curves
        Removal curves and signals of the test split.
    chosen
        All candidates, on the calibration split.
    tested
        What was chosen, on the test split; None before that.
    """
    answered = [sample for sample in curves.measurements if sample.curve is not None]
    studies = [chosen] if tested is None else [chosen, tested]
    scores: dict[tuple[str, str], FloatArray] = {}
    for study, split in zip(studies, ("calibration", "test"), strict=False):
        rows = study.result_frame()
        table = rows[rows["split"] == split].pivot(index="key", columns="arm", values="score")
        kept = table.dropna()
        scores |= {(split, str(arm)): kept[arm].to_numpy(np.float64) for arm in kept}
    return Evidence(
        model=model,
        task=task,
        score=curves.score,
        concentration=np.stack([sample.signals["convergence"] for sample in answered]),
        attention=np.stack([sample.signals["attention share"] for sample in answered]),
        changed=np.stack([losses(curve, "answer") for curve in curves.curves]),
        scores=scores,
        policies={
            arm.name: arm.truncation
            for study in studies
            for arm in study.arms
            if arm.truncation is not None
        },
        agreement={
            summary.arm.name: summary.agreement.value
            for summary in chosen.summaries
            if summary.split == "calibration"
        },
        clusters=curves.clusters,
        dtype=str(chosen.about["model"]["dtype"]),
    )


def save_evidence(evidence: Evidence, directory: Path) -> None:
    """Write one file, ``MODEL--TASK.npz``: arrays, and the rest as JSON text."""
    arrays = {
        "concentration": evidence.concentration.astype(np.float32),
        "attention": evidence.attention.astype(np.float32),
        "changed": evidence.changed.astype(np.float32),
        **{f"{split}/{arm}": values for (split, arm), values in evidence.scores.items()},
    }
    about = {
        "model": evidence.model,
        "task": evidence.task,
        "score": evidence.score,
        "policies": {name: policy.to_json() for name, policy in evidence.policies.items()},
        "agreement": evidence.agreement,
        "clusters": None if evidence.clusters is None else list(evidence.clusters),
        "dtype": evidence.dtype,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(json.dumps(about)), **arrays)
    write_files(directory, {f"{evidence.model}--{evidence.task}.npz": buffer.getvalue()})


def load_evidence(directory: Path, model: str, task: str) -> Evidence | None:
    """Read what :func:`save_evidence` wrote; None where it has not."""
    path = directory / f"{model}--{task}.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(str(arrays.pop("about")))
    measured = {
        name: arrays.pop(name).astype(np.float64)
        for name in ("concentration", "attention", "changed")
    }
    about["policies"] = {
        name: Truncation.from_json(plain) for name, plain in about["policies"].items()
    }
    scores = {(name.split("/", 1)[0], name.split("/", 1)[1]): arrays[name] for name in arrays}
    return Evidence(**about, **measured, scores=scores)
