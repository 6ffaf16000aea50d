"""The front of imports: runs that lmms-eval made, with our controls, intervals and corrections."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vlmflow.files import as_path
from vlmflow.reports.directory import write_directory
from vlmflow.studies.imported.store import read_imported, store_runs
from vlmflow.studies.imported.study import ImportedStudy


def import_runs(
    runs: Mapping[str, str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    task: str | None = None,
    metric: str | None = None,
    max_loss: float = 0.03,
    seed: int = 0,
) -> ImportedStudy:
    """Read runs that lmms-eval logged, and compare them with the untouched one.

    All runs have to be about the same documents. Page, figure and tables are written beside the
    store, which holds everything that was read.

    Parameters
    ----------
    runs : mapping of str to path
        By name: what lmms-eval was given as ``--output_path`` (with ``--log_samples``), or one
        ``..._samples_TASK.jsonl`` in it. The run called ``"untouched"``, or the one of ``--model
        vlmflow`` that removes nothing, is what the others are compared with. Controls are told by
        their arguments (``layer=0,keep=0``; ``rank_by=random`` on another run's schedule) or names
        (``"no image"``; ``"random:NAME"``).
    out : path
        Directory of the study; an earlier import in it is replaced.
    task : str, optional
        Read this task alone; otherwise all, which every run has to have.
    metric : str, optional
        What is compared; the first of a task that scores every sample from 0 to 1 where left out.
    max_loss : float
        Loss of score that a truncation may cost.
    seed : int
        Of bootstraps and tests.

    Raises
    ------
    InputError
        If a run cannot be read, runs are over other tasks, samples or models, or another process
        writes to ``out``.
    """
    folder = as_path(out)
    paths = [(name, as_path(path)) for name, path in runs.items()]
    store_runs(paths, folder, task=task, metric=metric, max_loss=max_loss, seed=seed)
    study = read_imported(folder)
    write_directory(study, folder)
    return study
