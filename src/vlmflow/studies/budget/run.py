"""Trying budgets: tested from many tokens to few on calibration samples, reported on new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from vlmflow.errors import InputError
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.lvlm.model import LVLM
from vlmflow.studies.budget.answered_split import AnsweredSplit, Counter
from vlmflow.studies.budget.findings import Tested
from vlmflow.studies.budget.measuring import Measuring
from vlmflow.studies.budget.new_samples import report_rows, untouched_way
from vlmflow.studies.budget.result import TokenBudget
from vlmflow.studies.budget.rungs import Rung, rungs_of
from vlmflow.studies.budget.settings import BudgetSettings
from vlmflow.studies.budget.store import BUDGET
from vlmflow.studies.certification.independent import independent_samples
from vlmflow.studies.store import Store, writing
from vlmflow.tasks.base import Task
from vlmflow.tasks.registry import address_of
from vlmflow.truncation.truncation import Truncation
from vlmflow.version import __version__


def run_budget(
    vlm: LVLM,
    task: Task,
    settings: BudgetSettings,
    directory: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TokenBudget:
    """Try budgets, or do what the directory's store lacks of it; see :func:`vlmflow.budget`.

    ``progress`` is called after every answer with how many there are, and at most will be.

    Raises
    ------
    InputError
        For impossible settings, if no sample could be answered, another process writes there, or
        the store cannot be used.
    """
    check_untruncated(vlm.model, "a budget")
    if settings.loss is not None and not task.by_itself:
        raise InputError(
            f"loss={settings.loss:g} is about single answers, but {task.name} scores all answers "
            f"together ({task.metric}); promise a risk instead"
        )
    if settings.layer >= vlm.num_layers:
        raise InputError(
            f"layer={settings.layer}, but {vlm.name} has {vlm.num_layers} decoder layers "
            f"(0..{vlm.num_layers - 1})"
        )
    Truncation(settings.layer, 1, settings.rank_by)  # a ranking that needs a layer before
    calibration = independent_samples(task, "calibration", settings.calibration, settings.seed)
    if len(calibration) < settings.calibration:  # a file has no more
        settings.check_bears(
            len(calibration), f"the {len(calibration)} calibration samples that {task.name} has"
        )
    test = independent_samples(task, "test", settings.samples, settings.seed)
    rungs = rungs_of(vlm, settings.budgets, test)
    most = (1 + len(rungs)) * len(calibration) + (1 + 2 * len(rungs)) * len(test)
    counter = Counter(progress, most)
    with writing(directory, BUDGET) as store:
        store.write("study", None)  # what is there belongs to another run
        measuring = Measuring(vlm, task, store)
        first = AnsweredSplit("calibration", calibration, measuring, counter)
        count = len(first.samples)
        settings.check_bears(count, f"the {count} calibration samples that could be answered")
        tested = _test(first, rungs, settings)
        new = AnsweredSplit("test", test, measuring, counter)
        rows = report_rows(new, rungs, tested, settings)
        result = TokenBudget(
            task=address_of(task),
            metric=task.metric,
            model=vlm.config_summary(),
            settings=settings,
            tested=len(first.samples),
            measured=len(new.samples),
            untouched=untouched_way(new, settings),
            rows=rows,
            failures=tuple(dict.fromkeys(measuring.failures)),
            versions={
                "vlmflow": __version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
        )
        store.write("study", result.to_json())
    return result


def read_budget(directory: Path) -> TokenBudget:
    """Read a finished budget from its directory.

    Raises
    ------
    InputError
        If there is none, it is not finished, or its file is damaged.
    """
    store = Store(directory, BUDGET)
    try:
        return TokenBudget.from_json(store.record())
    finally:
        store.close()


def _test(split: AnsweredSplit, rungs: Sequence[Rung], settings: BudgetSettings) -> list[Tested]:
    """Test budgets in their order until the first that fails: changed, p-value, whether accepted.

    The order is fixed beforehand, so that all are tested at one level (fixed-sequence testing).
    """
    results: list[Tested] = []
    before = split.scores(split.untouched) if settings.loss is not None else None
    for rung in rungs:
        answers = split.answers(rung)
        changed = split.changed(answers)
        losses = None
        if before is not None:
            losses = np.array(before) - np.array(split.scores(answers))
        p_value = settings.promise.p_value(changed, losses)
        accepted = p_value <= settings.promise.level
        results.append((int(changed.sum()), p_value, accepted))
        if not accepted:
            break
    return results
