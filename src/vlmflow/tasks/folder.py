"""Any pictures with a list of questions: a JSONL or CSV file beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmflow.errors import InputError
from vlmflow.lvlm.video_files import VideoFile
from vlmflow.tasks.base import SPLITS, Task, TaskSample, check_split
from vlmflow.tasks.question_file import Number, Row, read_rows

FIELDS = ("image", "video", "question", "answer", "choices", "split", "key", "group")
REQUIRED = ("question", "answer")
SEPARATOR = "|"


class FolderTask(Task):
    """Questions listed in a file, about pictures and videos beside it.

    A line has ``image`` or ``video`` or both (a path relative to the file, or several; pictures
    come before videos), ``question`` and ``answer`` (or several right ones), and may have
    ``choices``, ``group``, ``key`` and ``split``
    (``calibration`` or ``test``; lines without one belong to ``test``). Where no line has a split,
    every third picture is for calibration, with all its questions (of fewer than three pictures,
    every third line). In CSV, several values of one
    cell are separated by ``|``. An answer is right if it equals a reference up to case, white space
    and a full stop. Questions about one picture are kept together in intervals.

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
        rows = [(row, _sample(row)) for row in read_rows(path)]
        if not rows:
            raise InputError(f"task file {str(path)!r} has no questions in it")
        lines: dict[str, int] = {}
        for row, sample in rows:
            if sample.key in lines:
                raise row.wrong(f"key {sample.key!r} stands on line {lines[sample.key]} already")
            lines[sample.key] = row.line
        pictures = list(dict.fromkeys(sample.cluster for _, sample in rows))
        # A picture in both splits would let a choice made on one flatter itself on the other.
        by_line = len(pictures) < 3
        third = set((list(lines) if by_line else pictures)[2::3])
        divided = any("split" in row.values for row, _ in rows)
        self._splits: dict[str, list[TaskSample]] = {split: [] for split in SPLITS}
        for row, sample in rows:
            split = row.values.get("split", "test")
            if not divided and (sample.key if by_line else sample.cluster) in third:
                split = "calibration"
            self._splits[split].append(sample)

    @property
    def address(self) -> str:
        """The file."""
        return str(self.path)

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


def _sample(row: Row) -> TaskSample:
    for name in row.values:
        if name not in FIELDS:
            raise row.wrong(f"{name!r} is not a field; there are {', '.join(FIELDS)}")
    for name in REQUIRED:
        if row.values.get(name, []) == []:
            raise row.wrong(f"{name!r} is missing")
    if row.values.get("split", "test") not in SPLITS:
        raise row.wrong(f"split {row.values['split']!r} is neither calibration nor test")
    if not row.values.get("image") and not row.values.get("video"):
        raise row.wrong("'image' is missing; a line shows an 'image' or a 'video'")
    images, videos = (_files(row, kind) for kind in ("image", "video"))
    return TaskSample(
        key=_text(row, "key") or str(row.line),
        pictures=(*images, *map(VideoFile, videos)),
        question=_text(row, "question"),
        references=_texts(row, "answer"),
        choices=_texts(row, "choices"),
        group=_text(row, "group"),
        cluster=SEPARATOR.join((*_texts(row, "image"), *_texts(row, "video"))),
    )


def _files(row: Row, kind: str) -> tuple[Path, ...]:
    """Return what a line shows of a kind, beside the file of questions."""
    names = _texts(row, kind)
    for name in names:
        if isinstance(name, Number) or "\0" in name:
            raise row.wrong(f"{kind} {name!r} is not the name of a file")
    return tuple(row.path.parent / name for name in names)


def _texts(row: Row, name: str) -> tuple[str, ...]:
    """One text or several; several in a cell of CSV stand between bars."""
    value = row.values.get(name, [])
    if isinstance(value, str):
        in_csv = row.path.suffix.lower() == ".csv"
        value = [part.strip() for part in value.split(SEPARATOR)] if in_csv else [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise row.wrong(f"{name!r} is neither a text nor a list of texts")
    if not all(text.strip() for text in value):
        raise row.wrong(f"{name!r} has an empty value")
    return tuple(value)


def _text(row: Row, name: str) -> str:
    value = row.values.get(name, "")
    if not isinstance(value, str):
        raise row.wrong(f"{name!r} is not text")
    if name in row.values and not value.strip():
        raise row.wrong(f"{name!r} is empty")
    return value
