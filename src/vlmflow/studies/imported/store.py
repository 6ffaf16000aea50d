"""Where imported runs are kept, so that page and tables can be written again without the logs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmflow.errors import InputError
from vlmflow.parameters import check_integer
from vlmflow.studies.imported.arms import ImportedArm, arms_of_runs
from vlmflow.studies.imported.logs import LISTED, LoggedRun, LoggedSample, read_run
from vlmflow.studies.imported.study import ImportedStudy
from vlmflow.studies.samples import StoredSample
from vlmflow.studies.store import Store, writing
from vlmflow.studies.store_kind import StoreKind
from vlmflow.version import __version__


@dataclass(frozen=True)
class LoggedAnswer:
    """What one run made of one document."""

    id: str  # Hash of the run's name, the task and the document
    answer: str
    score: float


IMPORTED = StoreKind(
    name="imported",
    command="vlmflow study --import",
    format=1,
    tables={"sample": StoredSample, "answer": LoggedAnswer},
)


def store_runs(
    paths: Sequence[tuple[str, Path]],
    directory: Path,
    *,
    task: str | None = None,
    metric: str | None = None,
    max_loss: float = 0.03,
    seed: int = 0,
) -> None:
    """Read runs of lmms-eval, and put what they logged into a directory.

    Parameters
    ----------
    paths : sequence of (str, Path)
        Every run's name, or an empty one, and where it is.
    directory : Path
        Of the study; what it holds of an earlier import is replaced.
    task, metric, max_loss, seed
        As for :func:`vlmflow.import_runs`.

    Raises
    ------
    InputError
        If a run cannot be read, runs are not about the same, or another process writes there.
    """
    check_integer("seed", seed)
    if isinstance(max_loss, bool) or not 0 <= max_loss <= 1:
        raise InputError(f"max_loss={max_loss!r} is not a loss of score between 0 and 1")
    pairs = arms_of_runs([(name, read_run(path, task)) for name, path in paths])
    arms = [arm for arm, _ in pairs]
    logged = {arm.name: run for arm, run in pairs}
    _check_same(logged)
    metrics = {name: _metric(logged, name, metric) for name in logged[arms[0].name].samples}
    samples: dict[str, list[StoredSample]] = {}
    answers = []
    for name, score in metrics.items():
        own = logged[arms[0].name].samples[name]
        samples[name] = [_stored(name, own[document]) for document in sorted(own)]
        answers += [
            LoggedAnswer(_answer_id(arm, stored), sample.answer, sample.scores[score])
            for arm in arms
            for stored in samples[name]
            for sample in [logged[arm.name].samples[name][int(stored.key)]]
        ]
    with writing(directory, IMPORTED) as store:
        store.write("study", None)
        store.add(*(sample for group in samples.values() for sample in group), *answers)
        store.write(
            "study",
            {
                "arms": [arm.to_json() for arm in arms],
                "table": {name: [sample.id for sample in group] for name, group in samples.items()},
                "metrics": metrics,
                "settings": dict(logged[arms[0].name].settings),
                "max_loss": max_loss,
                "seed": seed,
                "version": __version__,
            },
        )


def read_imported(directory: Path) -> ImportedStudy:
    """Read imported runs from their directory.

    Raises
    ------
    InputError
        If there are none, or the file is damaged.
    """
    store = Store(directory, IMPORTED)
    try:
        record = store.record()
        arms = tuple(ImportedArm.from_json(plain) for plain in record["arms"])
        table: dict[str, list[str]] = record["table"]
        stored = store.get_all(StoredSample, [key for group in table.values() for key in group])
        samples = {name: tuple(stored[key] for key in group) for name, group in table.items()}
        ids = {
            (arm.name, sample.id): _answer_id(arm, sample)
            for arm in arms
            for sample in stored.values()
        }
        answers = store.get_all(LoggedAnswer, ids.values())
    finally:
        store.close()
    return ImportedStudy(
        arms=arms,
        samples=samples,
        answers={pair: answers[key].answer for pair, key in ids.items()},
        scores={pair: answers[key].score for pair, key in ids.items()},
        metrics=record["metrics"],
        settings=record["settings"],
        max_loss=record["max_loss"],
        seed=record["seed"],
    )


def _check_same(logged: Mapping[str, LoggedRun]) -> None:
    """Refuse runs over other tasks or samples, or with other answers allowed, than the first."""
    (first, own), *others = logged.items()
    for name, run in others:
        if set(run.samples) != set(own.samples):
            raise InputError(
                f"run {name!r} is about {', '.join(sorted(run.samples))} and {first!r} about "
                f"{', '.join(sorted(own.samples))}; name one task that both have with --task, or "
                "import runs of the same"
            )
        for task in own.samples:
            _check_samples(task, (first, own.samples[task]), (name, run.samples[task]))
            if run.settings[task] != own.settings[task]:
                raise InputError(
                    f"run {name!r} generated answers to {task} with {run.settings[task]} and "
                    f"{first!r} with {own.settings[task]}; run them alike"
                )


def _check_samples(
    task: str,
    first: tuple[str, Mapping[int, LoggedSample]],
    other: tuple[str, Mapping[int, LoggedSample]],
) -> None:
    for (name, samples), (has, wanted) in ((other, first), (first, other)):
        missing = sorted(set(wanted) - set(samples))
        if missing:
            listed = ", ".join(map(str, missing[:LISTED])) + ", ..." * (len(missing) > LISTED)
            raise InputError(
                f"run {name!r} lacks {len(missing)} of the {len(wanted)} documents of {task} that "
                f"{has!r} has ({listed}); run both with the same --limit and --offset"
            )
    for document, sample in first[1].items():
        same = other[1][document]
        for what, own_text, other_text in (
            ("question", sample.question, same.question),
            ("target", sample.target, same.target),
        ):
            if own_text != other_text:
                raise InputError(
                    f"document {document} of {task} has another {what} in run {other[0]!r} than in "
                    f"{first[0]!r}; these runs are not about the same samples"
                )


def _metric(logged: Mapping[str, LoggedRun], task: str, wanted: str | None) -> str:
    """Choose the metric of a task: the one that is wanted, or the first that scores all samples."""
    samples = [sample for run in logged.values() for sample in run.samples[task].values()]
    scored = [
        name for name in samples[0].scores if all(name in sample.scores for sample in samples)
    ]
    lower = {name for run in logged.values() for of, name in run.lower if of == task}
    usable = [
        name
        for name in scored
        if name not in lower and all(0 <= sample.scores[name] <= 1 for sample in samples)
    ]
    chosen = wanted or next(iter(usable), "")
    if chosen in usable:
        return chosen
    why = f"{task} has no metric that scores every sample from 0 to 1, the more the better"
    if wanted and wanted in lower:
        why = f"of metric {wanted!r} of {task} less is better"
    elif wanted and wanted in scored:
        why = f"metric {wanted!r} of {task} scores samples below 0 or above 1"
    elif wanted:
        why = f"{task} has no metric {wanted!r} with a score of every sample"
    has = f"choose one of {', '.join(usable)} with --metric" if usable else "it cannot be imported"
    raise InputError(f"{why}; {has}")


def _stored(task: str, sample: LoggedSample) -> StoredSample:
    texts = [task, sample.document, sample.question, sample.target, sample.picture]
    return StoredSample(
        id=_hashed(texts),
        split="test",
        key=str(sample.document),
        question=sample.question,
        refs=json.dumps([sample.target]),
        choices="[]",
        part=task,
        cluster=sample.picture,
    )


def _answer_id(arm: ImportedArm, sample: StoredSample) -> str:
    return _hashed([arm.name, sample.id])


def _hashed(texts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
