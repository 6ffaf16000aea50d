"""Explain a task's answers one after the other, and keep what a list of them says."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlmflow.errors import InputError
from vlmflow.explanation.explain import explain_prompt
from vlmflow.explanation.truncated import check_truncation
from vlmflow.flow.axes import OF
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.verdict import verdict
from vlmflow.studies.batching.ahead import Prepared, Preparer
from vlmflow.studies.explanations.beside import NOTHING_BESIDE, Beside
from vlmflow.studies.samples import as_text, failure_reason, model_identity, stored_sample
from vlmflow.tasks.base import Task, TaskSample

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

SAMPLE = "sample"
"""Setting of a result that says which sample, model and options it was measured with."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ExplainedAnswer:
    """One sample of an explained task.

    Parameters
    ----------
    sample : TaskSample
        Its question and pictures.
    folder : str
        Name of the directory of its report and numbers.
    answer : str, optional
        The model's answer; None where the sample failed.
    score : float
        The task's score of that answer; NaN where the sample failed.
    headline : str
        What the answer read, in a sentence; empty where it failed.
    picture : str
        Whether the picture matters to it.
    trust : str
        Whether its map ranks regions better than chance; empty where that was not asked.
    truncated, truncated_score : str and float, optional
        The answer with image tokens removed, and its score; None where that was not asked.
    failure : str, optional
        Why it failed.
    """

    sample: TaskSample
    folder: str
    answer: str | None
    score: float
    headline: str = ""
    picture: str = ""
    failure: str | None = None
    trust: str = ""
    truncated: str | None = None
    truncated_score: float | None = None


@dataclass(frozen=True)
class ExplainedTask:
    """The explained answers of a task, in the order of its samples.

    Parameters
    ----------
    task, metric : str
        The task and what its score is called.
    model : str
        Name of the model.
    answers : tuple of ExplainedAnswer
        Of every sample, also of those that failed.
    settings : dict
        What was asked for.
    """

    task: str
    metric: str
    model: str
    answers: tuple[ExplainedAnswer, ...]
    settings: dict[str, Any]

    @property
    def failures(self) -> tuple[ExplainedAnswer, ...]:
        """Samples that could not be explained."""
        return tuple(answer for answer in self.answers if answer.failure is not None)

    def frame(self) -> pd.DataFrame:
        """One row per sample, those that failed first, then by score from the lowest."""
        trust = any(answer.trust for answer in self.answers)
        truncated = any(answer.truncated is not None for answer in self.answers)
        rows = [
            {
                "key": answer.sample.key,
                "group": answer.sample.group,
                "question": answer.sample.question,
                "reference": " | ".join(answer.sample.references),
                "answer": answer.answer,
                "score": answer.score,
                "read": answer.headline,
                "picture": answer.picture,
                **({"trust": answer.trust} if trust else {}),
                **(
                    {"truncated": answer.truncated, "truncated_score": answer.truncated_score}
                    if truncated
                    else {}
                ),
                "failure": answer.failure,
                "folder": answer.folder,
            }
            for answer in self.answers
        ]
        frame = pd.DataFrame(rows)
        return frame.sort_values("score", na_position="first", kind="stable", ignore_index=True)

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return self.frame().to_html(index=False)


@dataclass(frozen=True, eq=False)
class _LookedUp:
    """A sample, what its result is called and marked with, and that where it is there."""

    sample: TaskSample
    name: str
    mark: str
    flow: InformationFlow | None


def explain_samples(
    vlm: LVLM,
    task: Task,
    options: ExplainOptions,
    folder: Path,
    write: Callable[[InformationFlow, TaskSample, Path], None],
    *,
    split: str,
    count: int,
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
    answers: list[ExplainedAnswer] = []
    identity = model_identity(vlm)
    depends_on = [identity, options.to_json(), *([beside.to_json()] if beside else [])]
    check_untruncated(vlm.model, "an explanation")
    options.check_model(vlm.decoder_layers)
    preparer = Preparer(vlm)

    def look_up(numbered: tuple[int, TaskSample]) -> _LookedUp:
        number, sample = numbered
        name = f"{number:04d}-{_UNSAFE.sub('-', sample.key)[:60]}"
        stored = stored_sample(task.name, split, sample).id
        mark = hashlib.sha256(as_text([stored, *depends_on]).encode()).hexdigest()
        return _LookedUp(sample, name, mark, _measured_before(folder / name, mark))

    def prepare(item: _LookedUp) -> Prepared | None:
        return preparer.prepare(item.sample) if item.flow is None else None

    items = map(look_up, enumerate(task.samples(split, count)))
    for item, prepared in preparer.ahead(prepare, items):
        sample, name, mark, flow = item.sample, item.name, item.mark, item.flow
        try:
            if prepared is not None:
                prompt = prepared.ready
                measured = explain_prompt(vlm, prompt, sample.question, None, options)
                measured = beside.added_to(measured, vlm, prompt, options)
        # Whatever goes wrong with one sample must not end the others.
        except Exception as error:
            reason = failure_reason(error)
            answers.append(ExplainedAnswer(sample, name, None, float("nan"), failure=reason))
        else:
            if flow is None:
                flow = dataclasses.replace(measured, settings={**measured.settings, SAMPLE: mark})
                write(flow, sample, folder / name)
            words = verdict(flow)
            answers.append(
                ExplainedAnswer(
                    sample,
                    name,
                    flow.answer,
                    0.0,
                    words.headline,
                    words.picture,
                    trust=beside.trust_words(flow),
                    truncated=None if flow.truncated is None else flow.truncated.answer,
                )
            )
        if progress is not None:
            progress(len(answers), count)
    if answers and all(answer.failure is not None for answer in answers):
        raise InputError(
            f"no sample of {task.name} could be explained; the first, {answers[0].sample.key}: "
            f"{answers[0].failure}"
        )
    settings = {"split": split, "samples": len(answers), **options.to_json()}
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


def _measured_before(directory: Path, mark: str) -> InformationFlow | None:
    """Read a result of the same sample, model and options, or None."""
    if not directory.is_dir():
        return None
    try:
        flow = InformationFlow.load(directory)
    except InputError:
        return None
    return flow if flow.settings.get(SAMPLE) == mark else None
