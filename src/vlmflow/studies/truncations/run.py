"""Running a study in one process: every sample under every arm, once, and resumable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

from vlmflow.errors import InputError, TooFewSamples
from vlmflow.lvlm.loading import open_model
from vlmflow.lvlm.model import LVLM
from vlmflow.studies.samples import model_identity, stored_sample
from vlmflow.studies.store import Store, writing
from vlmflow.studies.truncations.answering import Piece, WorkItem
from vlmflow.studies.truncations.cache_keys import result_id
from vlmflow.studies.truncations.choice import may_be_recommended
from vlmflow.studies.truncations.in_batches import AnsweredBatch, Answering
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.prefill_time import describe_machine, time_prefills, timing_id
from vlmflow.studies.truncations.sentences import too_few
from vlmflow.studies.truncations.store import STUDY, StoredResult, StoredTime
from vlmflow.tasks.base import SPLITS, Task
from vlmflow.tasks.registry import find_task
from vlmflow.version import __version__


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int  # Samples so far
    total: int  # Samples in all
    new: int  # Of those done: answered by this run, not found in its store
    # Mean score of the untouched model so far; None where samples cannot be scored one by one
    score: float | None


@dataclass(frozen=True)
class About:
    """What a study's tables need to know about the model that answers."""

    identity: str  # :func:`vlmflow.studies.samples.model_identity`
    layers: int  # Its decoder layers
    summary: dict[str, Any]  # :meth:`vlmflow.lvlm.model.LVLM.config_summary`
    machine: str  # :func:`vlmflow.studies.truncations.prefill_time.describe_machine`

    @classmethod
    def of(cls, vlm: LVLM) -> About:
        """Read it off a model."""
        return cls(model_identity(vlm), vlm.num_layers, vlm.config_summary(), describe_machine(vlm))


Answer = Callable[[Iterator[Piece]], Iterator[AnsweredBatch]]
"""Gives every piece's results, batch by batch, in any order."""

Timing = Callable[[set[str]], Iterator[tuple[str, float]]]
"""Gives the prefill times that are not known yet."""


def run_study(
    plan: Plan,
    directory: Path,
    *,
    vlm: LVLM | None = None,
    task: Task | None = None,
    progress: Callable[[Progress], None] | None = None,
    most: int | None = None,
) -> None:
    """Run a study, or what is missing of it, in this process.

    What the directory holds already is not computed again. The model is opened as the plan says
    where it is not given; the task is given where the plan's name of it cannot be looked up.
    ``progress`` is called after every batch of samples; ``most`` as for :func:`collect`.

    Raises
    ------
    InputError, ModelError
        If the plan does not fit the model or the task, or another process writes there.
    """
    task = task or find_task(plan.task)
    model = load_model(plan) if vlm is None else vlm
    about = About.of(model)
    arms = plan.arms(about.layers)
    length = plan.max_new_tokens or task.max_new_tokens

    def timing(measured: set[str]) -> Iterator[tuple[str, float]]:
        return time_prefills(model, task, arms, plan.timed, about.identity, measured)

    with writing(directory, STUDY) as store:
        answering = Answering(model, plan.batch, length)
        collect(plan, task, about, store, answering, timing, progress, most=most)


def load_model(plan: Plan) -> LVLM:
    """Open the model of a plan."""
    model, processor = open_model(
        plan.model,
        device=plan.device,
        dtype=plan.dtype,
        revision=plan.revision,
        device_map=plan.device_map,
    )
    return LVLM(model, processor, name=plan.model)


def collect(
    plan: Plan,
    task: Task,
    about: About,
    store: Store,
    answering: Answer,
    timing: Timing,
    progress: Callable[[Progress], None] | None = None,
    *,
    most: int | None = None,
) -> None:
    """Have everything answered that the store, which nobody else writes to, does not hold yet.

    Answers and times come from this process or from several. ``progress`` is called after every
    batch of samples. ``most`` is how many samples are answered at most; what is missing then is
    left to whoever stops this by ``progress``.

    Raises
    ------
    InputError
        If no sample could be answered at all.
    """
    arms = plan.arms(about.layers)
    length = plan.max_new_tokens or task.max_new_tokens
    table: dict[str, list[str]] = {split: [] for split in SPLITS}
    own_answers: list[str | None] = []  # of the untouched model
    total, right, new = plan.calibration + plan.samples, 0.0, 0

    def ids_of(sample: str) -> list[str]:
        return [result_id(about.identity, sample, arm, length) for arm in arms]

    def note(*done: Piece) -> None:
        """Count samples that are answered, and show how far the study is."""
        nonlocal right, new
        for piece in done:
            new += bool(piece.items)
            (own,) = store.get_all(StoredResult, ids_of(piece.stored.id)[:1]).values()
            own_answers.append(own.answer)
            if task.by_itself and own.answer is not None:
                right += task.score(piece.sample, own.answer)
        answered = sum(answer is not None for answer in own_answers)
        score = right / answered if task.by_itself and answered else None
        if progress is not None:
            progress(Progress(len(own_answers), total, new, score))

    def pieces() -> Iterator[Piece]:
        for split in SPLITS:
            count = plan.samples if split == "test" else plan.calibration
            for sample in task.samples(split, count):
                stored = stored_sample(task.name, split, sample)
                table[split].append(stored.id)
                ids = ids_of(stored.id)
                results = store.get(StoredResult, ids)
                answered = {name for name, result in results.items() if result.failure is None}
                missing = [
                    WorkItem(arm, name)
                    for arm, name in zip(arms, ids, strict=True)
                    if name not in answered  # what failed is tried again
                ]
                piece = Piece(sample, stored, tuple(missing))
                store.add(*store.changed([stored]))
                if missing:
                    yield piece
                else:
                    note(piece)

    lacking = too_few(sum(map(may_be_recommended, arms)), plan.calibration, plan.max_loss)
    if lacking:
        warnings.warn(f"no truncation can be found safe: {lacking}", TooFewSamples, stacklevel=2)
    store.write("study", None)
    largest: int = store.read("largest_batch") or 1  # of all runs
    for batch in answering(islice(pieces(), most)):
        store.add(*(result for _, results in batch.results for result in results))
        largest = max(largest, batch.at_once)
        store.write("largest_batch", largest)
        note(*(piece for piece, _ in batch.results))
    for split in SPLITS:
        if not table[split]:
            raise InputError(f"the {split} split of {task.name} has no samples")
    if all(answer is None for answer in own_answers):
        (first,) = store.get_all(StoredResult, ids_of(table["test"][0])[:1]).values()
        raise InputError(f"no sample of {task.name} could be answered; the first: {first.failure}")
    timed = table["calibration"][: plan.timed]
    names = [timing_id(about.identity, sample, arm) for sample in timed for arm in arms]
    for name, seconds in timing(set(store.get(StoredTime, names))):
        store.add(StoredTime(name, seconds))
    store.write(
        "study",
        {
            "plan": plan.to_json(),
            "table": table,
            "identity": about.identity,
            "layers": about.layers,
            "model": about.summary,
            "machine": about.machine,
            "largest_batch": largest,
            "versions": {
                "vlmflow": __version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
        },
    )
