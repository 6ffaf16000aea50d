"""Running a cliff study: every sample measured once, and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.errors import InputError, ModelError
from vlmflow.removal.knockout import knockouts
from vlmflow.studies.cliff_layer.measurements import SampleMeasurement, measure_samples
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.studies.cliff_layer.store import (
    CLIFF,
    StoredMeasurement,
    measurement_id,
    sample_measurement,
    stored_measurement,
)
from vlmflow.studies.cliff_layer.study import CliffStudy, cliff_study_of
from vlmflow.studies.samples import StoredSample, model_identity, stored_sample, task_sample
from vlmflow.studies.store import Store, writing
from vlmflow.tasks.base import SPLITS, Task, TaskSample
from vlmflow.tasks.registry import address_of, find_task

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

Measured = list[tuple[StoredSample, str, SampleMeasurement]]
"""Samples in order, with the ids of their measurements."""


def run_cliff_study(
    vlm: LVLM,
    task: Task,
    settings: CliffSettings,
    directory: Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CliffStudy:
    """Run a cliff study, or what its directory lacks of it; see :func:`vlmflow.cliff_study`.

    Without a directory nothing is stored. ``progress`` is called after every batch.

    Raises
    ------
    InputError
        If no sample could be measured, another process writes there, or the store cannot be used.
    ModelError
        If a knockout is wanted of a model that has none.
    """
    total, done = settings.calibration + settings.samples, 0

    def show(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    if settings.knockout:
        _check_knockout(vlm, task)
    counts = {"calibration": settings.calibration, "test": settings.samples}
    identity = model_identity(vlm)
    with nullcontext() if directory is None else writing(directory, CLIFF) as store:
        if store is not None:
            store.write("study", None)  # what is there belongs to another run
        measured: dict[str, Measured] = {split: [] for split in SPLITS}
        for split, count in counts.items():
            for batch in _batches(task.samples(split, count), settings.batch):
                knockout = settings.knockout and split == "test"
                measured[split] += _measured(
                    vlm, task, split, batch, identity, store, knockout=knockout
                )
                show(len(batch))
            if not measured[split]:
                raise InputError(f"the {split} split of {task.name} has no samples")
        if store is not None:
            store.write(
                "study",
                {
                    "task": address_of(task),
                    "model": vlm.config_summary(),
                    "settings": asdict(settings),
                    "table": {
                        split: [(sample.id, name) for sample, name, _ in measured[split]]
                        for split in SPLITS
                    },
                },
            )
    splits = {split: [item for _, _, item in measured[split]] for split in SPLITS}
    return cliff_study_of(task, vlm.config_summary(), settings, **splits)


def _check_knockout(vlm: LVLM, task: Task) -> None:
    """Raise ModelError for a model that has no knockout, before it is found sample by sample."""
    for sample in task.samples("test", 1):
        try:
            knockouts(vlm, [vlm.prepare(sample.pictures, sample.question, "a")])
        except ModelError:
            raise
        except Exception:  # a broken picture, say: this sample's own failure
            return


def read_cliff_study(directory: Path, task: Task | None = None) -> CliffStudy:
    """Read a finished cliff study from its directory; its samples have no pictures.

    The task is given where its name cannot be looked up (a class of a notebook).

    Raises
    ------
    InputError
        If there is none, it is not finished, or its file is damaged.
    """
    store = Store(directory, CLIFF)
    try:
        record = store.record()
        pairs = [pair for split in SPLITS for pair in record["table"][split]]
        samples = store.get_all(StoredSample, [sample for sample, _ in pairs])
        rows = store.get_all(StoredMeasurement, [name for _, name in pairs])
    finally:
        store.close()
    splits = {
        split: [
            sample_measurement(task_sample(samples[sample]), rows[name])
            for sample, name in record["table"][split]
        ]
        for split in SPLITS
    }
    settings = CliffSettings(**record["settings"])
    return cliff_study_of(task or find_task(record["task"]), record["model"], settings, **splits)


def _batches(samples: Iterator[TaskSample], size: int) -> Iterator[list[TaskSample]]:
    while batch := list(islice(samples, size)):
        yield batch


def _measured(
    vlm: LVLM,
    task: Task,
    split: str,
    batch: Sequence[TaskSample],
    identity: str,
    store: Store | None,
    *,
    knockout: bool,
) -> Measured:
    """Measure a batch, or take it from the store where all of it is there.

    A batch is stored as a whole: what is measured depends, in its last digits, on what it is
    measured with. One with a failed sample is tried again, and one without the knockout that is
    wanted is measured anew: an answer is not stored as the tokens that it was measured by.
    """
    samples = [stored_sample(task.name, split, sample) for sample in batch]
    ids = [sample.id for sample in samples]
    names = [measurement_id(identity, sample, ids, task.max_new_tokens) for sample in ids]
    rows = {} if store is None else store.get(StoredMeasurement, names)
    measured = [
        sample_measurement(sample, rows[name])
        for sample, name in zip(batch, names, strict=True)
        if name in rows
    ]
    new: list[StoredMeasurement] = []
    if len(measured) < len(batch) or not all(_is_whole(item, knockout) for item in measured):
        measured = measure_samples(vlm, batch, task.max_new_tokens, knockout=knockout)
        new = [stored_measurement(*pair) for pair in zip(names, measured, strict=True)]
    if store is not None:
        store.add(*store.changed(samples), *new)
    return list(zip(samples, names, measured, strict=True))


def _is_whole(measurement: SampleMeasurement, knockout: bool) -> bool:
    """Tell whether nothing is left to measure of a sample."""
    if measurement.failure is not None:
        return False
    return not knockout or measurement.curve is None or measurement.knockout is not None
