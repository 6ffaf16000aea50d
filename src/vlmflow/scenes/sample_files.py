"""Bundled pictures and questions as files, to try the command line and the Python API on."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from PIL import Image

from vlmflow.files import write_files
from vlmflow.scenes.tasks import sample, samples

PICTURE, QUESTIONS = "picture.png", "questions.jsonl"
_COUNT = 12
_TASKS = ("scenes-reading", "scenes-existence", "scenes-reasoning")


def write_samples(directory: str | os.PathLike[str]) -> tuple[Path, str]:
    """Write pictures and a file of questions about them, all together or none.

    ``picture.png`` is the one that ``vlmflow demo`` explains, ``left.png`` and ``right.png`` are
    two more, and ``questions.jsonl`` asks about twelve: a task for ``vlmflow study``.

    Returns
    -------
    picture, question : Path, str
        The first picture and a question about it.

    Raises
    ------
    InputError
        If the directory cannot be written; nothing is left then.
    """
    demonstration = sample("scenes-reading", split="test", index=3)
    contents = {PICTURE: _png(demonstration.picture)}
    for index, name in enumerate(("left.png", "right.png")):
        contents[name] = _png(sample("scenes-existence", split="test", index=index).picture)
    lines: list[str] = []
    for task in _TASKS:
        for one in samples(task, "test", _COUNT // len(_TASKS)):
            name = f"question-{len(lines) + 1}.png"
            contents[name] = _png(one.picture)
            row = {"image": name, "question": one.question, "answer": one.answer}
            lines.append(json.dumps(row) + "\n")
    contents[QUESTIONS] = "".join(lines).encode("utf-8")
    folder = write_files(directory, contents)
    return folder / PICTURE, demonstration.question


def _png(picture: Image.Image) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()
