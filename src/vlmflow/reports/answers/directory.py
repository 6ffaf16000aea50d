"""Write the folder of a task's explained answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.files import staged, write_files
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.batch_size import Batch
from vlmflow.reports.answers.page import REPORT, answers_page
from vlmflow.reports.write import report
from vlmflow.result.information_flow import InformationFlow
from vlmflow.studies.explanations.answers import ExplainedTask
from vlmflow.studies.explanations.beside import NOTHING_BESIDE, Beside
from vlmflow.studies.explanations.run import explain_samples
from vlmflow.tasks.base import Task, TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

INDEX, TABLE = "index.html", "answers.csv"


def write_answers(
    vlm: LVLM,
    task: Task,
    options: ExplainOptions,
    folder: Path,
    *,
    split: str,
    count: int,
    batch: Batch,
    beside: Beside = NOTHING_BESIDE,
    progress: Callable[[int, int], None] | None = None,
) -> ExplainedTask:
    """Explain samples into directories of their own, then write the page that lists them."""
    with staged(folder, (INDEX, TABLE)) as staging:  # refused before anything runs
        explained = explain_samples(
            vlm,
            task,
            options,
            folder,
            _write,
            split=split,
            count=count,
            batch=batch,
            beside=beside,
            progress=progress,
        )
        table = explained.frame().to_csv(index=False).encode()
        page = answers_page(explained).encode("utf-8")
        write_files(staging, {INDEX: page, TABLE: table})
    return explained


def _write(flow: InformationFlow, sample: TaskSample, directory: Path) -> None:
    regions = None if sample.box is None else {"what the question asks about": sample.box}
    with staged(directory, (REPORT,)) as staging:
        flow.save(staging)
        report(flow, staging / REPORT, regions=regions)
