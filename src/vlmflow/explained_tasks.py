"""The front of explained tasks: a folder of reports, and the page that lists them."""

from __future__ import annotations

import os
from collections.abc import Callable

from vlmflow.files import as_path
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.batch_size import Batch, check_batch
from vlmflow.model_api import LVLM
from vlmflow.parameters import check_integer
from vlmflow.reports.answers.directory import write_answers
from vlmflow.studies.explanations.answers import ExplainedTask
from vlmflow.studies.explanations.beside import Beside
from vlmflow.tasks.base import check_split
from vlmflow.tasks.registry import TaskLike, as_task
from vlmflow.truncation.truncation import Truncation


def explain_task(
    vlm: LVLM,
    task: TaskLike,
    *,
    out: str | os.PathLike[str],
    samples: int = 20,
    split: str = "test",
    batch: Batch = "auto",
    options: ExplainOptions | None = None,
    trust: bool = False,
    truncation: Truncation | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExplainedTask:
    """Explain the answers to a task: a folder of reports, and a page that lists them.

    Called again with the same ``out``, it goes on where it was. A sample that fails (a broken
    picture, too little memory) is listed first, with its reason.

    Parameters
    ----------
    vlm : LVLM
        The model.
    task : str or Task
        What ``vlmflow tasks`` lists, a ``.jsonl`` or ``.csv`` file, or an object of your own.
    out : path
        Directory of ``index.html``, ``answers.csv`` and a directory for every answer.
    samples : int
        How many, from the first on.
    split : str
        ``"calibration"`` or ``"test"``.
    batch : int or "auto"
        How many samples are answered and measured together, those of similar length; ``"auto"``: as
        many as memory holds. Where it runs out, a batch is halved. It changes results in their last
        digits; in half precision now and then an answer.
    options : ExplainOptions, optional
        What is measured, as for :meth:`vlmflow.LVLM.explain`.
    trust, truncation : bool, Truncation, optional
        Of every answer, as for :meth:`vlmflow.LVLM.explain`.
    progress : callable, optional
        Called with ``(samples done, samples in all)``.

    Raises
    ------
    InputError
        For impossible settings, or if no sample could be explained.
    """
    check_integer("samples", samples, least=1)
    check_split(split)
    check_batch(batch)
    return write_answers(
        vlm,
        as_task(task),
        options or ExplainOptions(),
        as_path(out),
        split=split,
        count=samples,
        batch=batch,
        beside=Beside(trust, truncation),
        progress=progress,
    )
