"""Running a cliff study: every sample measured once, and resumable."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.errors import InputError
from vlmflow.studies.cliff_layer.measuring import Measured, Measuring, check_knockout
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.studies.cliff_layer.store import CLIFF, StoredMeasurement, sample_measurement
from vlmflow.studies.cliff_layer.study import CliffStudy, cliff_study_of
from vlmflow.studies.samples import StoredSample, task_sample
from vlmflow.studies.store import Store, writing
from vlmflow.tasks.base import SPLITS, Task
from vlmflow.tasks.registry import address_of, find_task

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM


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
        check_knockout(vlm, task)
    counts = {"calibration": settings.calibration, "test": settings.samples}
    with nullcontext() if directory is None else writing(directory, CLIFF) as store:
        if store is not None:
            store.write("study", None)  # what is there belongs to another run
        measuring = Measuring(vlm, task, settings, store)
        measured: dict[str, Measured] = {}
        for split, count in counts.items():
            measured[split] = measuring.split(split, count, show)
            if not measured[split]:
                raise InputError(f"the {split} split of {task.name} has no samples")
        if store is not None:
            store.write(
                "study",
                {
                    "task": address_of(task),
                    "model": vlm.config_summary(),
                    "settings": asdict(settings),
                    "largest_batch": measuring.largest,
                    "table": {
                        split: [(sample.id, name) for sample, name, _ in measured[split]]
                        for split in SPLITS
                    },
                },
            )
    splits = {split: [item for _, _, item in measured[split]] for split in SPLITS}
    return cliff_study_of(task, vlm.config_summary(), settings, **splits)


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
