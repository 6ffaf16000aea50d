"""What lmms-eval writes with ``--log_samples``: one run, read and checked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError

_LOG = re.compile(r"(.+)_samples_(.+)\.jsonl", re.DOTALL)
_OF_THE_LOG = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts"),
    *("doc_hash", "input_media", "input"),
}
"""What lmms-eval logs of every sample; all else is a metric's."""

LISTED = 3


@dataclass(frozen=True)
class LoggedSample:
    """One document of a task, and what a run made of it."""

    document: int  # Its number in the task's split
    question: str
    target: str
    answer: str
    scores: Mapping[str, float]  # By metric, of those that score every sample
    picture: str  # The same for all documents that name the same pictures; empty: names none


@dataclass(frozen=True)
class LoggedRun:
    """One run of lmms-eval.

    Parameters
    ----------
    directory : Path
        Where its logs are.
    samples : mapping of str to dict of int to LoggedSample
        By task, and by the document's number.
    model, arguments : str
        ``--model`` and ``--model_args``; empty where no results file says them.
    settings : mapping of str to str
        Of every task, how answers were generated, as JSON.
    lower : frozenset of (str, str)
        Tasks and metrics of which less is better.
    """

    directory: Path
    samples: Mapping[str, Mapping[int, LoggedSample]]
    model: str
    arguments: str
    settings: Mapping[str, str]
    lower: frozenset[tuple[str, str]]


def read_run(path: Path, task: str | None = None) -> LoggedRun:
    """Read a run from the directory given to lmms-eval as ``--output_path``, or from one log in it.

    Parameters
    ----------
    path : Path
        A directory, which is searched, or a file ``..._samples_TASK.jsonl``.
    task : str, optional
        Read this task alone.

    Raises
    ------
    InputError
        If there is no log, there are several of one task, or one cannot be read.
    """
    logs = _logs(path)
    if task is not None:
        if task not in logs:
            raise InputError(
                f"{str(path)!r} has no samples of task {task!r}; it has {', '.join(sorted(logs))}"
            )
        logs = {task: logs[task]}
    results = {name: _results(log) for name, log in logs.items()}
    first = next(iter(results.values()))
    config = _mapping(first.get("config"))
    arguments = config.get("model_args") or ""
    if isinstance(arguments, dict):
        arguments = ",".join(f"{name}={value}" for name, value in arguments.items())
    return LoggedRun(
        directory=path,
        samples={
            name: _samples(log, _score_key(results[name], name)) for name, log in logs.items()
        },
        model=str(config.get("model") or ""),
        arguments=str(arguments),
        settings={name: _settings(results[name], name) for name in logs},
        lower=frozenset(
            (name, metric)
            for name in logs
            for metric, higher in _of_task(results[name], "higher_is_better", name).items()
            if higher is False
        ),
    )


def _logs(path: Path) -> dict[str, Path]:
    """Find the log of every task."""
    if path.is_dir():
        files = sorted(path.rglob("*_samples_*.jsonl"))
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"{str(path)!r} does not exist; give what lmms-eval had as --output_path")
    logs: dict[str, Path] = {}
    for file in files:
        matched = _LOG.fullmatch(file.name)
        if matched is None:
            continue
        if matched[2] in logs:
            raise InputError(
                f"{str(path)!r} holds {matched[2]!r} of several runs; name the log of one: "
                f"NAME={logs[matched[2]]}"
            )
        logs[matched[2]] = file
    if not logs:
        raise InputError(
            f"{str(path)!r} holds no samples of lmms-eval (..._samples_TASK.jsonl); run it with "
            "--log_samples --output_path DIR"
        )
    return logs


def _samples(log: Path, score_key: str) -> dict[int, LoggedSample]:
    samples: dict[int, LoggedSample] = {}
    for number, line in _lines(log):
        document = line.get("doc_id")
        if isinstance(document, bool) or not isinstance(document, int):
            raise InputError(f"line {number} of {str(log)!r} has no doc_id; lmms-eval writes one")
        if document in samples:
            raise InputError(
                f"{str(log)!r} holds document {document} twice, as tasks with several filters log "
                "it; such a task cannot be imported"
            )
        samples[document] = LoggedSample(
            document=document,
            question=_text(line.get("input")),
            target=_text(line.get("target")),
            answer=_text(line.get("filtered_resps")),
            scores=dict(_scores(line, score_key)),
            picture=_picture(line.get("input_media")),
        )
    if not samples:
        raise InputError(f"{str(log)!r} holds no samples")
    return samples


def _lines(log: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = log.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{str(log)!r} cannot be read ({why})") from error
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} of {str(log)!r} is not JSON") from error
        if not isinstance(line, dict):
            raise InputError(f"line {number} of {str(log)!r} is not a sample of lmms-eval")
        yield number, line


def _scores(line: Mapping[str, Any], score_key: str) -> Iterator[tuple[str, float]]:
    """Give a sample's scores: a metric is a number, or says it under the task's key for it."""
    for name, value in line.items():
        if name in _OF_THE_LOG:
            continue
        plain = value.get(score_key) if isinstance(value, dict) else value
        if isinstance(plain, bool | int | float) and math.isfinite(plain):
            yield name, float(plain)


def _results(log: Path) -> dict[str, Any]:
    """Read the results file beside a log; empty where there is none."""
    matched = _LOG.fullmatch(log.name)
    path = log.with_name(f"{matched[1] if matched else ''}_results.json")
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not a results file of lmms-eval") from error


def _of_task(results: Mapping[str, Any], name: str, task: str) -> Mapping[str, Any]:
    return _mapping(_mapping(results.get(name)).get(task))


def _score_key(results: Mapping[str, Any], task: str) -> str:
    return str(_of_task(results, "configs", task).get("score_key") or "score")


def _settings(results: Mapping[str, Any], task: str) -> str:
    settings = _of_task(results, "configs", task).get("generation_kwargs")
    return json.dumps(settings, sort_keys=True)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _picture(media: object) -> str:
    """Hash what a document says its pictures are: a file's name, an address, or their bytes."""
    if not isinstance(media, list) or not media:
        return ""
    return hashlib.sha256(_text(media).encode("utf-8", "surrogatepass")).hexdigest()[:16]
