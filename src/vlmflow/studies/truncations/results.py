"""What a finished study says: a table of settings, and which truncation to take, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from vlmflow.errors import InputError
from vlmflow.statistics.intervals import Estimate, mean_estimate, paired_difference
from vlmflow.studies.truncations.arms import UNTOUCHED, Setting, mean_share
from vlmflow.studies.truncations.cache_keys import result_id, task_sample
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.prefill_time import timing_id
from vlmflow.studies.truncations.store import Store, StoredResult, StoredSample
from vlmflow.tasks.base import SPLITS, Task
from vlmflow.tasks.registry import task as find_task
from vlmflow.truncation.amounts import Count
from vlmflow.truncation.rankings.random import Random

DRAWS = 2000


@dataclass(frozen=True)
class Line:
    """One setting on one split, over the samples that neither it nor the untouched model failed on.

    Parameters
    ----------
    setting : Setting
        Which.
    split : str
        One of :data:`vlmflow.tasks.base.SPLITS`.
    count, failed : int
        Samples, and those that are left out because this setting or the untouched model failed.
    score : Estimate
        Mean of the task's score.
    difference : Estimate or None
        Score minus the untouched model's, over the same samples; None for the untouched model.
    loyalty : Estimate
        Share of answers that are the untouched model's.
    figures : mapping
        The task's own figures.
    flops_share : float or None
        Operations of the whole prefill as a share of the untouched prompt's; None where the model's
        configuration does not tell them.
    formula_share : float
        The same by FastV's formula, for the decoder alone.
    image_tokens : float
        That an average layer sees, mean over samples.
    prefill, prefill_share : float or None
        Median seconds of a prefill, and median ratio to the untouched one; None: not timed.
    """

    setting: Setting
    split: str
    count: int
    failed: int
    score: Estimate
    difference: Estimate | None
    loyalty: Estimate
    figures: Mapping[str, float]
    flops_share: float | None
    formula_share: float
    image_tokens: float
    prefill: float | None
    prefill_share: float | None

    @property
    def cost_share(self) -> float:
        """Operations of the whole prefill; where they are not known, FastV's formula."""
        return self.formula_share if self.flops_share is None else self.flops_share


@dataclass(frozen=True)
class Recommendation:
    """The truncation chosen on the calibration split, and what it does on the test split.

    Parameters
    ----------
    chosen : Line
        On the calibration split: the largest saving whose loss is, with 95 % confidence, at most
        ``max_loss``.
    test : Line
        The same setting on the test split, which had no part in the choice.
    max_loss : float
        What was asked for.
    """

    chosen: Line
    test: Line
    max_loss: float

    @property
    def holds(self) -> bool:
        """Whether the loss is at most ``max_loss`` on the test split, too, with 95 % confidence."""
        return _within(self.test, self.max_loss)


@dataclass(frozen=True)
class Failure:
    """A sample that some settings failed on.

    Parameters
    ----------
    split, key : str
        Which sample.
    settings : tuple of str
        Names of the settings.
    reason : str
        Of the first.
    """

    split: str
    key: str
    settings: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished study, read from its directory.

    Parameters
    ----------
    plan : Plan
        What was asked for.
    task : Task
        The data.
    settings : tuple of Setting
        Untouched first.
    samples : dict of str to tuple of StoredSample
        Of each split, in order.
    answers : dict of (sample id, setting name) to StoredResult
        Every result.
    seconds : dict of str to list of float or None
        Of each setting: measured prefills, one per timed sample.
    about : dict
        Model, machine and versions.
    """

    plan: Plan
    task: Task
    settings: tuple[Setting, ...]
    samples: Mapping[str, tuple[StoredSample, ...]]
    answers: Mapping[tuple[str, str], StoredResult]
    seconds: Mapping[str, Sequence[float | None]]
    about: Mapping[str, Any]
    _known: dict[Any, list[float]] = field(default_factory=dict, repr=False)

    @cached_property
    def failures(self) -> list[Failure]:
        """Samples that some setting failed on."""
        found = []
        for split in SPLITS:
            for sample in self.samples[split]:
                results = {one.name: self.answers[sample.id, one.name] for one in self.settings}
                failed = {name: one.failure for name, one in results.items() if one.answer is None}
                if failed:
                    reason = next(iter(failed.values())) or "no reason given"
                    found.append(Failure(split, sample.key, tuple(failed), reason))
        return found

    @cached_property
    def lines(self) -> list[Line]:
        """Every setting on every split, where it has answered any sample."""
        return [
            self._line(setting, split)
            for split in SPLITS
            for setting in self.settings
            if self._answered(setting, split)
        ]

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The truncation to take, or None where no saving is safe enough."""
        known = [line for line in self.lines if line.split == "calibration"]
        safe = [
            line
            for line in known
            if line.setting.kind == "truncation"
            and line.cost_share < 1
            and line.setting.truncation is not None
            and not line.setting.truncation.is_oracle
            and _within(line, self.plan.max_loss)
        ]
        if not safe:
            return None
        chosen = min(safe, key=lambda line: line.cost_share)
        tests = [
            line
            for line in self.lines
            if line.split == "test" and line.setting.name == chosen.setting.name
        ]
        return Recommendation(chosen, tests[0], self.plan.max_loss) if tests else None

    def controls(self, setting: Setting) -> tuple[Setting, ...]:
        """Return what a truncation has to beat: random choice and down-sampled pictures.

        Truncations may share a control, whose :attr:`Setting.of` names only one of them.
        """
        layers = int(self.about["model"]["layers"])
        return tuple(
            one for one in self.settings if _controls(one, setting, layers, self.plan.seed)
        )

    def against(self, setting: Setting, control: Setting, split: str) -> Estimate | None:
        """Estimate how much higher a setting scores than a control, on samples of both.

        None where they have no sample in common.
        """
        there = set(self._answered(control, split))
        both = tuple(one for one in self._answered(setting, split) if one in there)
        if not both:
            return None
        scores, reference = (self._scores(one, both) for one in (setting, control))
        return paired_difference(scores, reference, [one.cluster for one in both])

    def setting_frame(self) -> pd.DataFrame:
        """One row per split and setting: everything of :class:`Line`, flat."""
        return pd.DataFrame([_flat(line) for line in self.lines])

    def result_frame(self) -> pd.DataFrame:
        """One row per sample and setting: question, answer, score, failure, operations."""
        rows = []
        for split in SPLITS:
            for setting in self.settings:
                there = self._answered(setting, split)
                scores = dict(zip(there, self._scores(setting, there), strict=True))
                for sample in self.samples[split]:
                    result = self.answers[sample.id, setting.name]
                    untouched = self.answers[sample.id, UNTOUCHED].answer
                    answered = result.answer is not None
                    rows.append(
                        {
                            "split": split,
                            "key": sample.key,
                            "group": sample.part,
                            "setting": setting.name,
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

    def _answered(self, setting: Setting, split: str) -> tuple[StoredSample, ...]:
        """Return the samples that the setting and the untouched model have answered."""
        return tuple(
            one
            for one in self.samples[split]
            if self.answers[one.id, setting.name].answer is not None
            and self.answers[one.id, UNTOUCHED].answer is not None
        )

    def _scores(self, setting: Setting, samples: tuple[StoredSample, ...]) -> list[float]:
        key = (setting.name, samples)
        if key not in self._known:
            answers = [self.answers[one.id, setting.name].answer or "" for one in samples]
            self._known[key] = self.task.scores([task_sample(one) for one in samples], answers)
        return self._known[key]

    def _line(self, setting: Setting, split: str) -> Line:
        there = self._answered(setting, split)
        clusters = [one.cluster for one in there]
        results = [self.answers[one.id, setting.name] for one in there]
        own = [self.answers[one.id, UNTOUCHED] for one in there]
        scores = self._scores(setting, there)
        same = [float(a.answer == b.answer) for a, b in zip(results, own, strict=True)]
        difference = None
        if setting.kind != UNTOUCHED:
            reference = self._scores(self.settings[0], there)
            difference = paired_difference(scores, reference, clusters)
        samples = [task_sample(one) for one in there]
        spent, whole = (
            [getattr(one, name) for one in results] for name in ("flops", "flops_untouched")
        )
        counted = None not in spent and None not in whole
        seconds, untouched = self.seconds[setting.name], self.seconds[UNTOUCHED]
        pairs = [(a, b) for a, b in zip(seconds, untouched, strict=True) if a and b]
        return Line(
            setting=setting,
            split=split,
            count=len(there),
            failed=len(self.samples[split]) - len(there),
            score=mean_estimate(scores, clusters, draws=DRAWS, seed=self.plan.seed),
            difference=difference,
            loyalty=mean_estimate(same, clusters, draws=DRAWS, seed=self.plan.seed),
            figures=self.task.summary(samples, [one.answer or "" for one in results]),
            flops_share=sum(spent) / sum(whole) if counted else None,
            formula_share=_mean([one.formula_share or 0.0 for one in results]),
            image_tokens=_mean([one.image_tokens or 0.0 for one in results]),
            prefill=median(a for a, _ in pairs) if pairs else None,
            prefill_share=median(a / b for a, b in pairs) if pairs else None,
        )


def read_outcome(directory: Path) -> Outcome:
    """Read a finished study from its directory.

    Raises
    ------
    InputError
        If there is none, or it is not finished.
    """
    store = Store(directory)
    try:
        study = store.read("study")
        if study is None:
            raise InputError(
                f"the study in {str(directory)!r} is not finished; run the same 'vlmflow study' "
                "again to go on with it"
            )
        plan = Plan.from_mapping(study["plan"])
        task = find_task(plan.task)
        settings = plan.settings(study["layers"])
        length = plan.max_new_tokens or task.max_new_tokens
        identity = study["identity"]
        table = {split: study["table"][split] for split in SPLITS}
        stored = store.samples([one for split in SPLITS for one in table[split]])
        ids = {
            (sample, setting.name): result_id(identity, sample, setting, length)
            for sample in stored
            for setting in settings
        }
        results = store.results(ids.values())
        timed = table["calibration"][: plan.timed]
        names = {
            setting.name: [timing_id(identity, one, setting) for one in timed]
            for setting in settings
        }
        known = store.seconds([one for group in names.values() for one in group])
    finally:
        store.close()
    return Outcome(
        plan=plan,
        task=task,
        settings=settings,
        samples={split: tuple(stored[one] for one in table[split]) for split in SPLITS},
        answers={pair: results[one] for pair, one in ids.items()},
        seconds={name: [known.get(one) for one in group] for name, group in names.items()},
        about={name: study[name] for name in ("model", "machine", "versions")},
    )


def _controls(one: Setting, setting: Setting, layers: int, seed: int) -> bool:
    policy, other = setting.truncation, one.truncation
    if setting.kind != "truncation" or policy is None or other is None or one is setting:
        return False
    if one.is_down_sampled:
        amounts = [stage.keep for both in (policy, other) for stage in both.stages]
        counted = any(isinstance(keep, Count) and keep for keep in amounts)
        shares = {round(mean_share(both, layers, 1000), 3) for both in (policy, other)}
        return other == policy or (not counted and len(shares) == 1)
    if not policy.ranks or isinstance(policy.ranking, Random):
        return False
    return other == replace(policy, rank_by=Random(seed))


def _within(line: Line, max_loss: float) -> bool:
    return line.difference is not None and -line.difference.low <= max_loss


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _flat(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {
        "split": line.split,
        "setting": line.setting.name,
        "kind": line.setting.kind,
        "control of": line.setting.of,
        "n": line.count,
        "failed": line.failed,
    }
    for name in ("score", "difference", "loyalty"):
        estimate: Estimate | None = getattr(line, name)
        row[name] = None if estimate is None else estimate.value
        row[f"{name} low"] = None if estimate is None else estimate.low
        row[f"{name} high"] = None if estimate is None else estimate.high
    row |= {
        "flops share": line.flops_share,
        "formula share": line.formula_share,
        "image tokens": line.image_tokens,
        "prefill seconds": line.prefill,
        "prefill share": line.prefill_share,
    }
    return row | dict(line.figures)
