"""The front of token budgets: what a user calls to learn how many image tokens a task needs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vlmflow.files import as_path
from vlmflow.lvlm.model import LVLM
from vlmflow.reports.directory import write_directory
from vlmflow.studies.budget.result import TokenBudget
from vlmflow.studies.budget.run import run_budget
from vlmflow.studies.budget.settings import Budget, BudgetSettings
from vlmflow.tasks.registry import TaskLike, as_task


def budget(
    vlm: LVLM,
    task: TaskLike,
    budgets: Sequence[Budget] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    settings: BudgetSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenBudget:
    """Find the smallest number of image tokens per picture that a task needs, with a promise.

    For models whose resolution can be chosen: budgets are tested on the calibration split from many
    tokens to few until the first that fails (fixed-sequence testing, as for certified policies);
    with the promised confidence every accepted one keeps the promise. All budgets are then reported
    on the test split, each beside the truncation of the whole picture that costs the decoder as
    much. A study that was interrupted continues when it is called again with the same ``out``.

    Parameters
    ----------
    vlm : LVLM
        The model. Answers at its processor's own settings are what budgets are held against.
    task : str or Task
        What ``vlmflow tasks`` lists, names joined by ``+`` for a mixture, a ``.jsonl`` or ``.csv``
        file, or an object of your own.
    budgets : sequence of int or of mapping, optional
        Image tokens that a picture may take, or settings of the image processor from many tokens to
        few (``{"max_patches": 4}``) where the model's family does not say which give how many. Left
        out: a half of what the largest picture of the test samples takes, a quarter, and so on.
    out : path, optional
        Directory of measurements, page, figure and table. Nothing is kept where it is left out.
    settings : BudgetSettings, optional
        Everything else: promise, numbers of samples, the truncations that are compared.
    progress : callable, optional
        Called with ``(answers so far, answers at most)``.

    Returns
    -------
    TokenBudget
        Its ``smallest.settings`` are what to set.

    Raises
    ------
    InputError, ModelError
        For impossible settings, a model that shows every picture at one size, or if no sample could
        be answered.
    """
    given = settings or BudgetSettings()
    if budgets is not None:
        given = replace(given, budgets=tuple(budgets))
    data = as_task(task)
    if out is not None:
        directory = as_path(out)
        result = run_budget(vlm, data, given, directory, progress=progress)
        write_directory(result, directory)
        return result
    with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
        return run_budget(vlm, data, given, Path(folder), progress=progress)
