"""What a finished study says: a table of arms, and which truncation to take, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference
from vlmflow.statistics.loss_tests import loss_p_value
from vlmflow.studies.samples import StoredSample, task_sample
from vlmflow.studies.store import Store
from vlmflow.studies.truncations.arms import UNTOUCHED, Arm, mean_share
from vlmflow.studies.truncations.cache_keys import result_id
from vlmflow.studies.truncations.choice import Choice, Recommendation, choose
from vlmflow.studies.truncations.notebook import study_html
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.prefill_time import timing_id
from vlmflow.studies.truncations.store import STUDY, StoredResult, StoredTime
from vlmflow.studies.truncations.summaries import ArmSummary, Failure
from vlmflow.tasks.base import SPLITS, Task
from vlmflow.tasks.registry import find_task
from vlmflow.truncation.amounts import Count
from vlmflow.truncation.rankings.random import Random

DRAWS = 2000


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A finished study, read from its directory.

    Parameters
    ----------
    plan : Plan
        What was asked for.
    task : Task
        The data.
    arms : tuple of Arm
        Untouched first.
    samples : dict of str to tuple of StoredSample
        Of each split, in order.
    answers : dict of (sample id, arm name) to StoredResult
        Every result.
    seconds : dict of str to list of float or None
        Of each arm: measured prefills, one per timed sample.
    about : dict
        Model, machine, versions, and how many samples were answered at once at most.
    """

    plan: Plan
    task: Task
    arms: tuple[Arm, ...]
    samples: Mapping[str, tuple[StoredSample, ...]]
    answers: Mapping[tuple[str, str], StoredResult]
    seconds: Mapping[str, Sequence[float | None]]
    about: Mapping[str, Any]
    _score_cache: dict[Any, list[float]] = field(default_factory=dict, repr=False)

    @cached_property
    def failures(self) -> list[Failure]:
        """Samples that some arm failed on."""
        failures = []
        for split in SPLITS:
            for sample in self.samples[split]:
                results = {arm.name: self.answers[sample.id, arm.name] for arm in self.arms}
                reasons = {
                    name: result.failure
                    for name, result in results.items()
                    if result.answer is None
                }
                if reasons:
                    reason = next(iter(reasons.values())) or "no reason given"
                    failures.append(Failure(split, sample.key, tuple(reasons), reason))
        return failures

    @cached_property
    def summaries(self) -> list[ArmSummary]:
        """Every arm on every split, where it has answered any sample."""
        return [
            self._summary(arm, split)
            for split in SPLITS
            for arm in self.arms
            if self._answered(arm, split)
        ]

    @cached_property
    def choice(self) -> Choice:
        """What the calibration samples say about every truncation, and which one to take."""
        return choose(self.summaries, self.plan.max_loss)

    @property
    def recommendation(self) -> Recommendation | None:
        """The truncation to take, or None where no saving is shown to be safe."""
        return self.choice.recommendation

    def controls(self, arm: Arm) -> tuple[Arm, ...]:
        """Return what a truncation has to beat: random choice and down-sampled pictures.

        Truncations may share a control, whose :attr:`Arm.of` names only one of them.
        """
        layers = int(self.about["model"]["layers"])
        return tuple(
            control for control in self.arms if _is_control(control, arm, layers, self.plan.seed)
        )

    def against(self, arm: Arm, control: Arm, split: str) -> Estimate | None:
        """Estimate how much higher an arm scores than a control, on samples of both.

        None where they have no sample in common.
        """
        of_control = set(self._answered(control, split))
        common = tuple(sample for sample in self._answered(arm, split) if sample in of_control)
        if not common:
            return None
        clusters = [sample.cluster for sample in common]
        return paired_difference(self.scores(arm, common), self.scores(control, common), clusters)

    def answered_by(self, arms: Sequence[Arm], split: str) -> tuple[StoredSample, ...]:
        """Return the samples of a split that all of these arms have answered."""
        return tuple(
            sample
            for sample in self.samples[split]
            if all(self.answers[sample.id, arm.name].answer is not None for arm in arms)
        )

    def scores(self, arm: Arm, samples: tuple[StoredSample, ...]) -> list[float]:
        """Score an arm's answers to some samples, all of which it has answered."""
        key = (arm.name, samples)
        if key not in self._score_cache:
            answers = [self.answers[sample.id, arm.name].answer or "" for sample in samples]
            questions = [task_sample(sample) for sample in samples]
            self._score_cache[key] = self.task.scores(questions, answers)
        return self._score_cache[key]

    def _repr_html_(self) -> str:
        """Show the finding and one row per arm in a notebook."""
        texts = {"task": self.task.name, "metric": self.task.metric}
        texts["model"] = str(self.about["model"]["name"])
        return study_html(texts, self.summaries, self.choice, len(self.failures))

    def arm_frame(self) -> pd.DataFrame:
        """One row per split and arm: everything of :class:`ArmSummary`, flat."""
        return pd.DataFrame([_flat(summary) for summary in self.summaries])

    def result_frame(self) -> pd.DataFrame:
        """One row per sample and arm: question, answer, score, failure, operations."""
        rows = []
        for split in SPLITS:
            for arm in self.arms:
                samples = self._answered(arm, split)
                scores = dict(zip(samples, self.scores(arm, samples), strict=True))
                for sample in self.samples[split]:
                    result = self.answers[sample.id, arm.name]
                    untouched = self.answers[sample.id, UNTOUCHED].answer
                    answered = result.answer is not None
                    rows.append(
                        {
                            "split": split,
                            "key": sample.key,
                            "group": sample.part,
                            "arm": arm.name,
                            "question": sample.question,
                            "references": sample.refs,
                            "answer": result.answer,
                            "score": scores.get(sample),
                            "same answer": result.answer == untouched if answered else None,
                            "image tokens": result.image_tokens,
                            "flops": result.flops,
                            "flops untouched": result.flops_untouched,
                            "failure": result.failure,
                        }
                    )
        return pd.DataFrame(rows)

    def _answered(self, arm: Arm, split: str) -> tuple[StoredSample, ...]:
        """Return the samples that the arm and the untouched model have answered."""
        return self.answered_by((arm, self.arms[0]), split)

    def _summary(self, arm: Arm, split: str) -> ArmSummary:
        samples = self._answered(arm, split)
        clusters = [sample.cluster for sample in samples]
        results = [self.answers[sample.id, arm.name] for sample in samples]
        own = [self.answers[sample.id, UNTOUCHED] for sample in samples]
        scores = self.scores(arm, samples)
        same = [float(a.answer == b.answer) for a, b in zip(results, own, strict=True)]
        difference = p_value = None
        if arm.kind != UNTOUCHED:
            reference = self.scores(self.arms[0], samples)
            difference = paired_difference(scores, reference, clusters)
            p_value = loss_p_value(scores, reference, self.plan.max_loss, clusters)
        questions = [task_sample(sample) for sample in samples]
        spent = [result.flops for result in results]
        whole = [result.flops_untouched for result in results]
        seconds, untouched = self.seconds[arm.name], self.seconds[UNTOUCHED]
        pairs = [(a, b) for a, b in zip(seconds, untouched, strict=True) if a and b]
        return ArmSummary(
            arm=arm,
            split=split,
            count=len(samples),
            failed=len(self.samples[split]) - len(samples),
            score=mean_estimate(scores, clusters, draws=DRAWS, seed=self.plan.seed),
            difference=difference,
            p_value=p_value,
            agreement=mean_estimate(same, clusters, draws=DRAWS, seed=self.plan.seed),
            figures=self.task.summary(questions, [result.answer or "" for result in results]),
            flops_share=_ratio(spent, whole),
            formula_share=_mean([result.formula_share or 0.0 for result in results]),
            image_tokens=_mean([result.image_tokens or 0.0 for result in results]),
            prefill=median(a for a, _ in pairs) if pairs else None,
            prefill_share=median(a / b for a, b in pairs) if pairs else None,
        )


def read_study(directory: Path, task: Task | None = None) -> StudyResult:
    """Read a finished study from its directory.

    The task is given where its name cannot be looked up (a class of a notebook).

    Raises
    ------
    InputError
        If there is none, it is not finished, or its file is damaged.
    """
    store = Store(directory, STUDY)
    try:
        record = store.record()
        plan = Plan.from_mapping(record["plan"])
        task = task or find_task(plan.task)
        arms = plan.arms(record["layers"])
        length = plan.max_new_tokens or task.max_new_tokens
        identity = record["identity"]
        table = {split: record["table"][split] for split in SPLITS}
        stored = store.get_all(StoredSample, [key for split in SPLITS for key in table[split]])
        ids = {
            (sample, arm.name): result_id(identity, sample, arm, length)
            for sample in stored
            for arm in arms
        }
        results = store.get_all(StoredResult, ids.values())
        timed = table["calibration"][: plan.timed]
        names = {arm.name: [timing_id(identity, sample, arm) for sample in timed] for arm in arms}
        times = store.get(StoredTime, [name for group in names.values() for name in group])
    finally:
        store.close()
    return StudyResult(
        plan=plan,
        task=task,
        arms=arms,
        samples={split: tuple(stored[sample] for sample in table[split]) for split in SPLITS},
        answers={pair: results[name] for pair, name in ids.items()},
        seconds={
            arm: [times[name].seconds if name in times else None for name in group]
            for arm, group in names.items()
        },
        about={
            # A study of an earlier version answered samples one by one.
            "largest_batch": record.get("largest_batch", 1),
            **{name: record[name] for name in ("model", "machine", "versions")},
        },
    )


def _is_control(candidate: Arm, arm: Arm, layers: int, seed: int) -> bool:
    policy, other = arm.truncation, candidate.truncation
    if arm.kind != "truncation" or policy is None or other is None or candidate is arm:
        return False
    if candidate.is_down_sampled:
        amounts = [stage.keep for both in (policy, other) for stage in both.stages]
        counted = any(isinstance(keep, Count) and keep for keep in amounts)
        shares = {round(mean_share(both, layers, 1000), 3) for both in (policy, other)}
        return other == policy or (not counted and len(shares) == 1)
    if not policy.ranks or isinstance(policy.ranking, Random):
        return False
    return other == replace(policy, rank_by=Random(seed))


def _ratio(spent: Sequence[float | None], whole: Sequence[float | None]) -> float | None:
    """Return the ratio of two sums; None where a part of either is not known."""
    pairs = [(a, b) for a, b in zip(spent, whole, strict=True) if a is not None and b is not None]
    if len(pairs) < len(spent):
        return None
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _flat(summary: ArmSummary) -> dict[str, Any]:
    row: dict[str, Any] = {
        "split": summary.split,
        "arm": summary.arm.name,
        "kind": summary.arm.kind,
        "control of": summary.arm.of,
        "n": summary.count,
        "failed": summary.failed,
    }
    for name in ("score", "difference", "agreement"):
        estimate: Estimate | None = getattr(summary, name)
        row[name] = None if estimate is None else estimate.value
        row[f"{name} low"] = None if estimate is None else estimate.low
        row[f"{name} high"] = None if estimate is None else estimate.high
    row |= {
        "p-value": summary.p_value,
        "flops share": summary.flops_share,
        "formula share": summary.formula_share,
        "image tokens": summary.image_tokens,
        "prefill seconds": summary.prefill,
        "prefill share": summary.prefill_share,
    }
    return row | dict(summary.figures)
