"""Running a table again: one study per data set below one directory, each of them resumable."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlmflow.errors import InputError, TooFewSamples
from vlmflow.files import write_files
from vlmflow.lvlm.model import LVLM
from vlmflow.reproductions.official_split import OfficialSplit
from vlmflow.reproductions.published import PublishedData
from vlmflow.reproductions.reproduction import Reproduction
from vlmflow.reproductions.request import Request
from vlmflow.studies.faithfulness.run import read_faithfulness, run_faithfulness
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.studies.faithfulness.store import FAITHFULNESS
from vlmflow.studies.faithfulness.study import FaithfulnessStudy
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.results import StudyResult, read_study
from vlmflow.studies.truncations.run import Progress, run_study
from vlmflow.tasks.hub.task import HubTask
from vlmflow.tasks.registry import address_of

RECORD, RATES = "reproduction.json", "rates.json"
"""Files that say what was asked for, and how long a sample took."""

BATCH, CALIBRATION = 4, 20
"""Pictures to a forward pass, and samples on which a map's layer is chosen."""


@dataclass(frozen=True)
class Step:
    """How far one data set is."""

    task: str
    done: int
    total: int
    seconds_left: float | None  # By the samples measured in this run; None: none yet


def check_data(request: Request) -> None:
    """Open every data set and read its first sample, before a model is loaded.

    Raises
    ------
    InputError
        If one cannot be read.
    """
    for data in request.data:
        task = request.task(data)
        _ = [*task.samples("test", 1)]


def run_reproduction(
    request: Request,
    vlm: LVLM,
    directory: Path,
    progress: Callable[[Step], None] | None = None,
) -> Reproduction:
    """Run a table, or what the directory lacks of it, and return it beside its figures.

    ``progress`` is called after every sample.

    Raises
    ------
    InputError, ModelError
        If the model is another one, a truncation does not fit it, a data set cannot be read, or
        another process writes to the directory.
    """
    request.check_config(vlm.model.config)
    plans = {data.task: _plan(request, data, vlm) for data in request.data}
    for plan in plans.values():
        if plan is not None:
            plan.arms(vlm.num_layers)
    for data in request.data:
        clock = _Clock(data.task, directory, progress)
        try:
            _run(request, data, vlm, directory / data.task, plans[data.task], clock)
        finally:
            clock.write()
    return read_studies(request, directory)


def read_studies(request: Request, directory: Path) -> Reproduction:
    """Read the finished studies of a directory.

    Raises
    ------
    InputError
        If one is damaged or not finished.
    """
    studies: dict[str, StudyResult | FaithfulnessStudy] = {}
    for data in request.data:
        # Answers are scored without the pictures, wherever those are.
        folder, task = directory / data.task, HubTask(data.task)
        if request.signals(data):
            studies[data.task] = read_faithfulness(folder, task)
        else:
            studies[data.task] = read_study(folder, OfficialSplit(task, data))
    return Reproduction(request, studies)


def is_reproduction(directory: Path) -> bool:
    """Whether a directory holds a table that was run again."""
    return (directory / RECORD).is_file()


def read_reproduction(directory: Path) -> Reproduction:
    """Read a table that was run again from its directory.

    Raises
    ------
    InputError
        If there is none, or a part of it is damaged.
    """
    path = directory / RECORD
    try:
        request = Request.from_json(json.loads(path.read_text("utf-8"))["request"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} is not what 'vlmflow reproduce' wrote; run the same command again"
        ) from error
    return read_studies(request, directory)


def measured_rates(directory: Path) -> dict[str, float]:
    """Return seconds per sample by data set, where a run into this directory has measured any."""
    try:
        plain = json.loads((directory / RATES).read_text("utf-8"))
        return {str(name): float(value) for name, value in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class _Clock:
    """Counts samples and seconds, and keeps the rate for estimates."""

    def __init__(self, task: str, directory: Path, progress: Callable[[Step], None] | None) -> None:
        self.task, self.directory, self.progress = task, directory, progress
        self.last, self.spent, self.new = time.monotonic(), 0.0, 0

    @property
    def rate(self) -> float | None:
        """Seconds per sample; None while none was measured."""
        return self.spent / self.new if self.new else None

    def show(self, done: int, total: int, new: int) -> None:
        """Note that a sample is done, the ``new``-th of those that were not there already."""
        now = time.monotonic()
        if new > self.new:  # reading what is stored is not measuring
            self.spent += now - self.last
        self.last, self.new = now, new
        if self.progress is not None:
            left = None if self.rate is None else self.rate * (total - done)
            self.progress(Step(self.task, done, total, left))

    def write(self) -> None:
        """Keep the rate, if any sample was measured."""
        if self.rate is not None:
            rates = measured_rates(self.directory) | {self.task: self.rate}
            write_files(self.directory, {RATES: (json.dumps(rates) + "\n").encode()})


def _plan(request: Request, data: PublishedData, vlm: LVLM) -> Plan | None:
    """Return the plan of a data set's study; None where maps are tested."""
    if request.signals(data):
        return None
    task = OfficialSplit(request.task(data), data)
    return Plan(
        task=address_of(task),
        model=vlm.name,
        # The model without any image token is in every study, and so stands for no truncation.
        truncations=request.policies(data) or ("layer=0,keep=0",),
        samples=request.count(data),
        calibration=1,
        timed=0,
        seed=request.seed,
        controls=(),
        max_new_tokens=task.max_new_tokens,
        batch=1,  # as published tables were made, and as the estimate of memory assumes
    )


def _run(
    request: Request,
    data: PublishedData,
    vlm: LVLM,
    folder: Path,
    plan: Plan | None,
    clock: _Clock,
) -> None:
    task = request.task(data)
    if plan is None:
        # What is there already comes at once, and would pass for a rate.
        is_fresh = not (folder / FAITHFULNESS.file).is_file()

        def show(done: int, total: int) -> None:
            clock.show(done, total, done if is_fresh else 0)

        settings = faithfulness_settings(request.count(data), request.seed)
        run_faithfulness(vlm, task, request.signals(data), settings, folder, progress=show)
        return

    def step(now: Progress) -> None:
        clock.show(now.done, now.total, now.new)

    with warnings.catch_warnings():
        # Nothing is chosen, so it does not matter how many samples a choice would take.
        warnings.simplefilter("ignore", TooFewSamples)
        run_study(plan, folder, vlm=vlm, task=OfficialSplit(task, data), progress=step)


def faithfulness_settings(samples: int, seed: int) -> FaithfulnessSettings:
    """Return EAGLE's protocol with what fits a card of 24 GB."""
    return FaithfulnessSettings(
        samples=samples,
        calibration=min(CALIBRATION, samples),
        protocol="eagle",
        sanity=0,
        timed=0,
        batch=BATCH,
        low_memory=True,
        seed=seed,
    )
