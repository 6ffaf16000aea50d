"""The front of comparisons: rankings against random tokens, over a task."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from vlmflow.errors import TooFewSamples
from vlmflow.files import as_path
from vlmflow.model_api import LVLM
from vlmflow.parameters import check_integer, given_list
from vlmflow.reports.directory import write_directory
from vlmflow.studies.comparison.arms import ALL, compared_rankings, compared_truncations
from vlmflow.studies.comparison.comparison import Comparison
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.results import read_study
from vlmflow.studies.truncations.run import Progress, run_study
from vlmflow.tasks.base import Task
from vlmflow.tasks.registry import TaskLike, address_of, as_task
from vlmflow.truncation.amounts import Count
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.truncation import Truncation

KEEPS = (0.5, 0.25, 0.1)


def compare(
    vlm: LVLM,
    rankings: Sequence[str | Ranking] | str | Ranking = ALL,
    *,
    task: TaskLike,
    layer: int,
    keep: Sequence[int | float] = KEEPS,
    out: str | os.PathLike[str] | None = None,
    samples: int = 200,
    timed: int = 8,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Compare rankings with random tokens and an even spread, by real removal, over a task.

    All answer the same samples. Differences to random tokens are paired, at equal numbers of tokens
    and at equal measured cost, and corrected for all of them together. A comparison that was
    interrupted continues when it is called again with the same ``out``.

    Parameters
    ----------
    vlm : LVLM
        The model.
    rankings : list of str or Ranking
        What is compared: names, objects of your own, or ``"all"`` for every one that comes with the
        package. The controls are there without being named.
    task : str or Task
        What ``vlmflow tasks`` lists, a ``.jsonl`` or ``.csv`` file, or an object of your own.
    layer : int
        Decoder layer from which on the other image tokens are gone, counted from 0.
    keep : list of int or float
        How many image tokens stay: counts, or shares between 0 and 1.
    out : path, optional
        Directory for page, picture (PNG, PDF), tables (CSV, LaTeX) and the study they are read
        from. Nothing is kept where it is left out.
    samples : int
        Samples of the test split.
    timed : int
        Samples of the calibration split whose prefill is timed under every arm; 0: cost is
        operations, counted.
    seed : int
        Of the three random choices, whose scores are averaged, of tests and bootstraps.
    progress : callable, optional
        Called after every sample.

    Raises
    ------
    InputError, ModelError
        For impossible settings, or if another process writes to ``out``.
    """
    check_integer("timed", timed, 0)
    listed = [rankings] if isinstance(rankings, str | Ranking) else list(rankings)
    data = as_task(task)
    compared = compared_rankings(listed, seed)
    truncations = compared_truncations(compared, layer, given_list("keep", keep) or ())
    _check_counts(vlm, data, truncations)
    plan = Plan(
        task=address_of(data),
        model=vlm.name,
        truncations=truncations,
        samples=samples,
        calibration=max(timed, 1),
        timed=timed,
        seed=seed,
        controls=(),
    )
    if out is not None:
        return _compared(plan, as_path(out), vlm, data, progress, kept=True)
    with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
        return _compared(plan, Path(folder), vlm, data, progress, kept=False)


def _check_counts(vlm: LVLM, task: Task, truncations: Sequence[Truncation]) -> None:
    """Refuse a number of tokens that the first sample does not have, before anything is stored."""
    counts = [stage.keep for policy in truncations for stage in policy.stages]
    if not any(isinstance(keep, Count) for keep in counts):
        return
    for sample in task.samples("test", 1):
        prompt = vlm.prepare(sample.pictures, sample.question)
        for keep in counts:
            keep.of(len(prompt.layout.image_positions))


def _compared(
    plan: Plan,
    folder: Path,
    vlm: LVLM,
    task: Task,
    progress: Callable[[Progress], None] | None,
    *,
    kept: bool,
) -> Comparison:
    with warnings.catch_warnings():
        # Nothing is chosen here, so it does not matter how many samples a choice would take.
        warnings.simplefilter("ignore", TooFewSamples)
        run_study(plan, folder, vlm=vlm, task=task, progress=progress)
    comparison = Comparison(read_study(folder, task))
    if kept:
        write_directory(comparison, folder)
    return comparison
