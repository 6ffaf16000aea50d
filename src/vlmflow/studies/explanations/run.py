"""Explain a task's answers, and keep what a list of them says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.errors import InputError
from vlmflow.explanation.truncated import check_truncation
from vlmflow.flow.axes import OF
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.lvlm.batch_size import Batch
from vlmflow.studies.explanations.answers import ExplainedAnswer, ExplainedTask
from vlmflow.studies.explanations.beside import NOTHING_BESIDE, Beside
from vlmflow.studies.explanations.explaining import Explaining, Write
from vlmflow.tasks.base import Task

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM


def explain_samples(
    vlm: LVLM,
    task: Task,
    options: ExplainOptions,
    folder: Path,
    write: Write,
    *,
    split: str,
    count: int,
    batch: Batch,
    beside: Beside = NOTHING_BESIDE,
    progress: Callable[[int, int], None] | None = None,
) -> ExplainedTask:
    """Explain the first samples of a split; what was measured before is not measured again.

    Parameters
    ----------
    vlm, task, options
        The model, the data, and what is measured.
    folder
        Directory of the answers' directories.
    write
        Writes report and numbers of one answer into its directory.
    split, count
        Which samples.
    batch
        How many are answered and measured together.
    beside
        What is wanted of every answer beside its explanation.
    progress
        Called with ``(samples done, samples in all)``.

    Raises
    ------
    InputError
        For options that name words, a truncation that does not fit the model, or if not a single
        sample could be explained.
    """
    if options.target is not None or options.of != OF[0]:
        raise InputError(
            "target and of name words of one answer or question, but a task has many; explain its "
            "whole answers, or one picture and its question"
        )
    if beside.truncation is not None:
        check_truncation(vlm, beside.truncation)
    check_untruncated(vlm.model, "an explanation")
    options.check_model(vlm.decoder_layers)
    explaining = Explaining(vlm, task, options, beside, folder, write, batch=batch)
    done = 0

    def show() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, count)

    answers = explaining.split(split, count, show)
    if answers and all(answer.failure is not None for answer in answers):
        raise InputError(
            f"no sample of {task.name} could be explained; the first, {answers[0].sample.key}: "
            f"{answers[0].failure}"
        )
    settings = {"split": split, "samples": len(answers), **options.to_json(), "batch": batch}
    settings["largest_batch"] = max((answer.batch for answer in answers), default=0)
    if beside:
        settings |= beside.to_json()
    return ExplainedTask(task.name, task.metric, vlm.name, _scored(task, answers), settings)


def _scored(task: Task, answers: list[ExplainedAnswer]) -> tuple[ExplainedAnswer, ...]:
    """Score all answers at once: a metric over a corpus needs them together."""
    given = [(answer.sample, answer.answer) for answer in answers if answer.answer is not None]
    scores = iter(task.scores([pair[0] for pair in given], [pair[1] for pair in given]))
    other = [
        (answer.sample, answer.truncated) for answer in answers if answer.truncated is not None
    ]
    others = iter(
        task.scores([pair[0] for pair in other], [pair[1] for pair in other]) if other else ()
    )
    return tuple(
        dataclasses.replace(
            answer,
            score=answer.score if answer.answer is None else next(scores),
            truncated_score=None if answer.truncated is None else next(others),
        )
        for answer in answers
    )
