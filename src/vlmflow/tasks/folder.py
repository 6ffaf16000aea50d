"""Any pictures with a list of questions: a JSONL or CSV file beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError
from vlmflow.tasks.base import Task, TaskSample, check_split

FIELDS = ("image", "question", "answer", "choices", "split", "key", "group")
REQUIRED = ("image", "question", "answer")
SEPARATOR = "|"


@dataclass(frozen=True)
class _Line:
    number: int
    values: dict[str, Any]


class FolderTask(Task):
    """Questions listed in a file, about pictures beside it.

    A line has ``image`` (a path relative to the file, or several), ``question`` and ``answer`` (or
    several right ones), and may have ``choices``, ``group``, ``key`` and ``split``
    (``calibration`` or ``test``; lines without one belong to ``test``). Where no line has a split,
    every third line is for calibration. In CSV, several values of one cell are separated by ``|``.
    An answer is right if it equals a reference up to case, white space and a full stop.

    Parameters
    ----------
    path : Path
        A ``.jsonl`` or ``.csv`` file.

    Raises
    ------
    InputError
        If the file cannot be read, or a line is not as described.
    """

    metric = "accuracy"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self._splits: dict[str, list[TaskSample]] = {"calibration": [], "test": []}
        keys: dict[str, int] = {}
        lines = list(_lines(path))
        divided = any("split" in line.values for line in lines)
        for number, line in enumerate(lines):
            split, sample = _sample(path, line)
            if not divided and number % 3 == 2:
                split = "calibration"
            if sample.key in keys:
                raise _wrong(
                    path, line, f"key {sample.key!r} stands on line {keys[sample.key]} already"
                )
            keys[sample.key] = line.number
            self._splits[split].append(sample)
        if not keys:
            raise InputError(f"task file {str(path)!r} has no questions in it")

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Give lines in their order; see :meth:`vlmflow.tasks.base.Task.samples`."""
        check_split(split)
        samples = self._splits[split]
        if not samples:
            raise InputError(
                f"task file {str(self.path)!r} has no samples of the {split} split; give lines a "
                f'"split": "{split}"'
            )
        yield from samples[:count]

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by equality with a reference."""
        return float(_plain(answer) in {_plain(reference) for reference in sample.references})


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _lines(path: Path) -> Iterator[_Line]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"task file {str(path)!r} cannot be read ({reason})") from error
    if path.suffix.lower() == ".csv":
        table = csv.DictReader(text.splitlines())
        for cells in table:
            yield _Line(table.line_num, {name: value for name, value in cells.items() if value})
        return
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"task file {str(path)!r} is neither .jsonl nor .csv")
    for number, row in enumerate(text.splitlines(), start=1):
        if row.strip():
            try:
                values = json.loads(row)
            except json.JSONDecodeError as error:
                reason = f"is not JSON ({error.msg})"
                raise InputError(f"line {number} of {str(path)!r} {reason}") from error
            if not isinstance(values, dict):
                raise InputError(f"line {number} of {str(path)!r} is not a JSON object")
            yield _Line(number, values)


def _sample(path: Path, line: _Line) -> tuple[str, TaskSample]:
    for name in line.values:
        if name not in FIELDS:
            raise _wrong(path, line, f"{name!r} is not a field; there are {', '.join(FIELDS)}")
    for name in REQUIRED:
        if not line.values.get(name):
            raise _wrong(path, line, f"{name!r} is missing")
    split = line.values.get("split", "test")
    if split not in ("calibration", "test"):
        raise _wrong(path, line, f"split {split!r} is neither calibration nor test")
    pictures = tuple(path.parent / name for name in _texts(path, line, "image"))
    return split, TaskSample(
        key=str(line.values.get("key", line.number)),
        pictures=pictures,
        question=_text(path, line, "question"),
        references=_texts(path, line, "answer"),
        choices=_texts(path, line, "choices"),
        group=_text(path, line, "group"),
    )


def _texts(path: Path, line: _Line, name: str) -> tuple[str, ...]:
    """One text or several; several in a cell of CSV stand between bars."""
    value = line.values.get(name, ())
    if isinstance(value, str):
        several = value.split(SEPARATOR) if path.suffix.lower() == ".csv" else [value]
        return tuple(text.strip() for text in several)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise _wrong(path, line, f"{name!r} is neither a text nor a list of texts")


def _text(path: Path, line: _Line, name: str) -> str:
    value = line.values.get(name, "")
    if not isinstance(value, str):
        raise _wrong(path, line, f"{name!r} is not text")
    return value


def _wrong(path: Path, line: _Line, what: str) -> InputError:
    return InputError(f"line {line.number} of {str(path)!r}: {what}")
