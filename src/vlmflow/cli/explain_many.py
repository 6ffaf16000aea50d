"""``vlmflow explain TASK``: a folder of reports, and the page that lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlmflow.cli.terminal import check_range, notes, printable, progress, quiet_libraries
from vlmflow.errors import InputError

if TYPE_CHECKING:
    from vlmflow.lvlm.batch_size import Batch


def explain_many(
    task: str,
    *,
    samples: int,
    split: str,
    batch: Batch,
    out: Path,
    as_json: bool,
    model: str,
    load: dict[str, Any],
    explain: dict[str, Any],
    trust: bool,
    truncate: str | None,
) -> None:
    """Explain the first samples of a task into a folder."""
    check_range("--samples", samples, 1)
    with progress() as show, notes():
        show(f"Loading {model}")
        quiet_libraries()
        import vlmflow
        from vlmflow.flow.options import ExplainOptions
        from vlmflow.reports.answers.directory import INDEX
        from vlmflow.tasks.registry import as_task

        data = _task(task, as_task)  # before the model is loaded
        options = ExplainOptions(**explain)
        truncation = None if truncate is None else vlmflow.Truncation.parse(truncate)
        vlm = vlmflow.load(model, **load)
        explained = vlmflow.explain_task(
            vlm,
            data,
            out=out,
            samples=samples,
            split=split,
            batch=batch,
            options=options,
            trust=trust,
            truncation=truncation,
            progress=lambda done, total: show(f"Explained: {done} of {total}", done, total),
        )
    page = out / INDEX
    scores = [answer.score for answer in explained.answers if answer.failure is None]
    mean, failed = sum(scores) / len(scores), len(explained.failures)
    if as_json:
        facts = {
            "task": explained.task,
            "model": explained.model,
            "samples": len(explained.answers),
            "failed": failed,
            "largest_batch": explained.settings["largest_batch"],
            explained.metric: mean,
            "page": str(page),
        }
        typer.echo(json.dumps(facts))
        return
    lost = f", {failed} failed" if failed else ""
    typer.echo(
        f"{len(scores)} answers{lost}, {printable(explained.metric)} {100 * mean:.1f} % -> "
        f"{printable(str(page))}"
    )


def _task(text: str, as_task: Any) -> Any:
    """Look a task up; a picture whose question was left out is the likelier slip."""
    try:
        return as_task(text)
    except InputError as error:
        if Path(text).suffix.lower() in (".jsonl", ".csv"):
            raise
        raise InputError(f"{error}; a picture needs its question: IMAGE QUESTION") from error
