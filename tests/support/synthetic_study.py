"""Made-up studies with known scores: no model, no pictures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from vlmflow.studies.samples import StoredSample
from vlmflow.studies.truncations.arms import Arm, mean_share
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.results import StudyResult
from vlmflow.studies.truncations.store import StoredResult
from vlmflow.tasks.base import Task, TaskSample

LAYERS = 12
HOSTILE = "<script>ranPayload++</script><img src=x onerror=ranPayload++>\u202e\x00$x_1$"

Accuracy = Callable[[Arm, str], float]
"""Share of right answers of an arm on a split."""


class WordTask(Task):
    """An answer is right if it is the reference."""

    metric = "accuracy"

    def __init__(self, name: str = "scenes-reasoning", points: bool = False) -> None:
        self.name = name
        self.points = points

    def samples(self, split: str, count: int | None = None):
        raise AssertionError("a finished study's page draws no samples")

    def score(self, sample: TaskSample, answer: str) -> float:
        return float(answer in sample.references)

    def summary(self, samples: Any, answers: Any) -> dict[str, float]:
        mean = super().summary(samples, answers)
        right = sum(self.scores(samples, answers))
        return mean | ({"MME points": right * 2, "chair <b>": 1 - right / len(samples)}
                       if self.points else {})  # fmt: skip


def synthetic_study(
    plan: Plan,
    accuracy: Accuracy,
    *,
    task: Task | None = None,
    failed: Mapping[tuple[str, str], str] | None = None,
    text: str = "",
    seed: int = 0,
) -> StudyResult:
    """Build a study: every arm is right on the first ``accuracy`` share of shuffled samples.

    Parameters
    ----------
    plan, accuracy
        What was asked for, and what came of it.
    failed : mapping of (sample key, arm name or "*") to str, optional
        Reasons of failures.
    text : str
        Stands in every question and wrong answer.
    """
    arms = plan.arms(LAYERS)
    counts = {"calibration": plan.calibration, "test": plan.samples}
    samples = {
        split: tuple(
            StoredSample(f"{split}{i}", split, f"{split}-{i}", f"How many stars? {text}",
                         json.dumps(["two"]), "[]", "", "")
            for i in range(count)
        )
        for split, count in counts.items()
    }  # fmt: skip
    draw = random.Random(seed)
    luck = {sample.id: number / len(group) for group in samples.values()
            for number, sample in enumerate(draw.sample(group, len(group)))}  # fmt: skip
    answers = {}
    for group in samples.values():
        for sample in group:
            for arm in arms:
                reasons = failed or {}
                reason = reasons.get((sample.key, arm.name)) or reasons.get((sample.key, "*"))
                right = luck[sample.id] < accuracy(arm, sample.split)
                if arm.kind in ("random", "down-sampled"):
                    right = draw.random() < accuracy(arm, sample.split)
                answer = None if reason else "two" if right else f"three {text}"
                policy = arm.truncation
                share = 1.0 if policy is None else mean_share(policy, LAYERS, 144)
                answers[sample.id, arm.name] = StoredResult(
                    f"{sample.id} {arm.name}", answer, reason, 144 * share,
                    1e9 * (0.3 + 0.7 * share), 1e9, share,
                )  # fmt: skip
    seconds = {}
    for arm in arms:
        policy = arm.truncation
        share = 1.0 if policy is None else mean_share(policy, LAYERS, 144)
        spread = 1 + 0.05 * draw.random()
        seconds[arm.name] = [
            0.2 * (0.4 + 0.6 * share) * spread if policy else 0.2 for _ in range(plan.timed)
        ]
    about = {
        "model": {"name": f"scenes-llava{text and ' ' + text}", "layers": LAYERS},
        "machine": "x86_64 CPU, 2 threads",
        "largest_batch": 16,
        "versions": {"vlmflow": "0.1.0", "torch": "2.13.0"},
    }
    return StudyResult(plan, task or WordTask(), arms, samples, answers, seconds, about)
